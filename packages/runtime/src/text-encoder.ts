import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { EncoderDefinition, PromptEncoding, RowInput } from "./families/family.ts";
import { type Component, floatsOf, type OrtModule, tokenTensor } from "./ort.ts";
import type { PromptTokenizer } from "./tokenizer.ts";

/** Prompts whose encodings are kept: a picture needs two, and a session tends to return to a few. */
const cacheSize = 16;

/** Tokenizes and encodes prompts, and remembers the most recent. */
export class TextEncoder {
  readonly component: Component;
  readonly #ort: OrtModule;
  readonly #tokenizer: PromptTokenizer;
  readonly #definition: EncoderDefinition;
  /** In order of use, oldest first. */
  readonly #cache = new Map<string, PromptEncoding>();

  constructor(ort: OrtModule, component: Component, tokenizer: PromptTokenizer, definition: EncoderDefinition) {
    this.#ort = ort;
    this.component = component;
    this.#tokenizer = tokenizer;
    this.#definition = definition;
  }

  /**
   * @param adapters - tensors for the text encoder's own adapter inputs, where it has any
   * @param adapterKey - says which adapters those are
   */
  async encode(prompt: string, adapters: Record<string, Tensor>, adapterKey: string): Promise<PromptEncoding> {
    const key = JSON.stringify([adapterKey, prompt]);
    let encoding = this.#cache.get(key);
    this.#cache.delete(key);
    encoding ??= await this.#run(prompt, adapters);
    this.#cache.set(key, encoding);
    if (this.#cache.size > cacheSize) this.#cache.delete(this.#cache.keys().next().value!);
    return encoding;
  }

  async #run(prompt: string, adapters: Record<string, Tensor>): Promise<PromptEncoding> {
    const { component } = this;
    const port = component.input("input_ids");
    const { ids, mask } = this.#tokenizer.encodeMasked(this.#definition.prepare?.(prompt) ?? prompt);
    const feeds = { ...adapters, [port.name]: tokenTensor(this.#ort, port, ids) };
    const maskPort = component.inputs.get("attention_mask");
    if (maskPort) feeds[maskPort.name] = tokenTensor(this.#ort, maskPort, mask);
    const results = await component.run(feeds);
    const names = this.#definition.outputs(Object.keys(results));
    const outputs = new Map<string, RowInput>();
    for (const name of names) {
      const output = results[name];
      if (!output) throw this.#lacks(names, results);
      // A copy: on the web an output may live in memory that the next run takes back.
      outputs.set(name, { dims: output.dims.slice(1), values: floatsOf(output).slice() });
    }
    const [states] = outputs.values();
    if (!states) throw this.#lacks(names, results);
    return { states, outputs, mask };
  }

  #lacks(names: readonly string[], results: Readonly<Record<string, Tensor>>): InputError {
    return new InputError({
      what: "the text encoder lacks an output that its family needs",
      file: this.component.file,
      expected: names.join(", ") || "hidden states [batch, tokens, width]",
      got: Object.keys(results).join(", "),
      fix: "Export the pipeline with Optimum, which writes all hidden states.",
    });
  }
}
