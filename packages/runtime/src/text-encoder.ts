import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import { type Component, floatsOf, type OrtModule, tokenTensor } from "./ort.ts";
import type { PromptTokenizer } from "./tokenizer.ts";

/** Prompts whose encodings are kept: a picture needs two, and a session tends to return to a few. */
const cacheSize = 16;

/** A prompt's hidden states, `[tokens, width]`. */
export interface PromptEncoding {
  tokens: number;
  width: number;
  values: Float32Array;
}

/** Tokenizes and encodes prompts, and remembers the most recent. */
export class TextEncoder {
  readonly component: Component;
  readonly #ort: OrtModule;
  readonly #tokenizer: PromptTokenizer;
  /** In order of use, oldest first. */
  readonly #cache = new Map<string, PromptEncoding>();

  constructor(ort: OrtModule, component: Component, tokenizer: PromptTokenizer) {
    this.#ort = ort;
    this.component = component;
    this.#tokenizer = tokenizer;
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
    const port = this.component.input("input_ids");
    const ids = this.#tokenizer.encode(prompt);
    const outputs = await this.component.run({ ...adapters, [port.name]: tokenTensor(this.#ort, port, ids) });
    const output = outputs.last_hidden_state ?? Object.values(outputs).find((tensor) => tensor.dims.length === 3);
    if (!output) {
      throw new InputError({
        what: "the text encoder gives no hidden states",
        file: this.component.file,
        expected: "an output [batch, tokens, width]",
        got: Object.keys(outputs).join(", "),
      });
    }
    // A copy: on the web an output may live in memory that the next run takes back.
    return { tokens: output.dims[1], width: output.dims[2], values: floatsOf(output).slice() };
  }
}
