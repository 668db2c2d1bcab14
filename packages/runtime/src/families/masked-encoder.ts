import { type Conditions, type EncoderDefinition, lastStates, type PromptEncoding } from "./family.ts";

/** A T5 or Gemma whose padding is hidden by a mask, from itself and from the network. */
export function maskedEncoder(tokens: number): EncoderDefinition {
  return {
    component: "text_encoder",
    tokenizer: "tokenizer",
    tokens: () => tokens,
    masked: true,
    outputs: lastStates,
    prepare: lowerCase,
  };
}

/** Prompts as the models were trained with them. */
function lowerCase(prompt: string): string {
  return prompt.toLowerCase().trim();
}

/** States and mask of a {@link maskedEncoder}. */
export function encodeMasked(texts: ReadonlyMap<string, PromptEncoding>): Conditions {
  const { states, mask } = texts.get("text_encoder")!;
  return { encoder_hidden_states: states, encoder_attention_mask: { dims: [mask.length], values: mask } };
}
