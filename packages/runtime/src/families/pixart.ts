import {
  type Conditions,
  type Drawing,
  type EncoderDefinition,
  type Family,
  lastStates,
  type PromptEncoding,
} from "./family.ts";

/** Prompts as the models were trained with them. */
export const lowerCase = (prompt: string) => prompt.toLowerCase().trim();

/** A T5 or Gemma whose padding is hidden from the network by a mask. */
export function maskedEncoder(tokens: number): EncoderDefinition {
  return {
    component: "text_encoder",
    tokenizer: "tokenizer",
    tokens: () => tokens,
    outputs: lastStates,
    prepare: lowerCase,
  };
}

/** States and mask of a {@link maskedEncoder}. */
export function maskedConditions(prompt: ReadonlyMap<string, PromptEncoding>): Conditions {
  const { states, mask } = prompt.get("text_encoder")!;
  return { encoder_hidden_states: states, encoder_attention_mask: { dims: [mask.length], values: mask } };
}

const pixart = {
  denoiser: "transformer",
  sample: "hidden_states",
  output: "out_hidden_states",
  isFlow: false,
  defaults: { guidance: 4.5, steps: 20, size: 128 },
  patch: 2,
  timestep: { scale: 1, perRow: true },
  conditions,
} as const satisfies Partial<Family>;

/**
 * PixArt-alpha: Chen et al., "Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis" (2023).
 * The network predicts a variance behind the noise, which no scheduler here uses.
 */
export const pixartAlpha: Family = {
  ...pixart,
  name: "PixArt-alpha",
  pipelineClasses: ["PixArtAlphaPipeline"],
  encoders: [maskedEncoder(120)],
};

/** PixArt-sigma: longer prompts, another autoencoder. */
export const pixartSigma: Family = {
  ...pixart,
  name: "PixArt-sigma",
  pipelineClasses: ["PixArtSigmaPipeline"],
  encoders: [maskedEncoder(300)],
};

/** Alpha's models of 1024 pixels are told the size, too. */
function conditions(prompt: ReadonlyMap<string, PromptEncoding>, { denoiser, width, height }: Drawing): Conditions {
  const size = {
    resolution: { dims: [2], values: [height, width] },
    aspect_ratio: { dims: [1], values: [height / width] },
  };
  const wanted = Object.entries(size).filter(([name]) => denoiser.inputs.has(name));
  return { ...maskedConditions(prompt), ...Object.fromEntries(wanted) };
}
