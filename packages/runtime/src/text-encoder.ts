import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { EncoderDefinition, PromptEncoding, RowInput } from "./families/family.ts";
import { type Component, floatsOf, numberTensor, type OrtModule } from "./ort.ts";
import type { PromptTokenizer } from "./tokenizer.ts";

/** Prompts whose encodings are kept: a picture needs two, and a session tends to return to a few. */
const cacheSize = 16;

/** Tokenizes and encodes prompts, and remembers the most recent. */
export class TextEncoder {
  readonly component: Component;
  readonly #ort: OrtModule;
  readonly #tokenizer: PromptTokenizer;
  readonly #definition: EncoderDefinition;
  readonly #wanted: readonly string[];
  /** In order of use, oldest first. */
  readonly #cache = new Map<string, PromptEncoding>();

  /** @throws InputError when the graph lacks an output that the family needs */
  constructor(ort: OrtModule, component: Component, tokenizer: PromptTokenizer, definition: EncoderDefinition) {
    this.#ort = ort;
    this.component = component;
    this.#tokenizer = tokenizer;
    this.#definition = definition;
    const available = [...component.outputs.keys()];
    this.#wanted = definition.outputs(available);
    if (this.#wanted.length > 0 && this.#wanted.every((name) => component.outputs.has(name))) return;
    throw new InputError({
      what: "the text encoder lacks an output that the family needs",
      file: component.file,
      expected: this.#wanted.join(", ") || "hidden states [batch, tokens, width]",
      got: available.join(", "),
      fix: "Export it again, with all its hidden states.",
    });
  }

  /**
   * @param adapters - tensors for the text encoder's own adapter inputs, where it has any
   * @param adapterKey - says which adapters those are
   */
  async encode(prompt: string, adapters: Record<string, Tensor>, adapterKey: string): Promise<PromptEncoding> {
    const text = this.#definition.prepare?.(prompt) ?? prompt;
    const key = JSON.stringify([adapterKey, text]);
    let encoding = this.#cache.get(key);
    this.#cache.delete(key);
    encoding ??= await this.#run(text, adapters);
    this.#cache.set(key, encoding);
    if (this.#cache.size > cacheSize) this.#cache.delete(this.#cache.keys().next().value!);
    return encoding;
  }

  async #run(text: string, adapters: Record<string, Tensor>): Promise<PromptEncoding> {
    const { ids, mask } = this.#tokenizer.encodeMasked(text);
    const feeds = { ...adapters };
    const feed = (name: string, values: readonly number[]) => {
      feeds[name] = numberTensor(this.#ort, this.component.input(name), values, [1, values.length]);
    };
    feed("input_ids", ids);
    if (this.component.inputs.has("attention_mask")) {
      feed("attention_mask", this.#definition.masked ? mask : ids.map(() => 1));
    }
    const results = await this.component.run(feeds);
    const outputs = new Map<string, RowInput>();
    for (const name of this.#wanted) {
      const { dims } = results[name];
      // A copy: on the web an output may live in memory that the next run takes back.
      outputs.set(name, { dims: dims.slice(1), values: floatsOf(results[name]).slice() });
    }
    return { states: outputs.get(this.#wanted[0])!, outputs, mask };
  }
}
