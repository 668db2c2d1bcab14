import type { Conditions, Drawing, Family } from "./family.ts";
import { encodeMasked, maskedEncoder } from "./masked-encoder.ts";

const pixart = {
  denoiser: "transformer",
  requires: ["encoder_attention_mask"],
  sample: "hidden_states",
  output: "out_hidden_states",
  isFlow: false,
  defaults: { guidance: 4.5, steps: 20, size: 128 },
  patch: 2,
  timestep: { scale: 1, perRow: true },
  encodePrompt: encodeMasked,
  constants,
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
function constants({ denoiser, width, height }: Drawing): Conditions {
  const size = {
    resolution: { dims: [2], values: [height, width] },
    aspect_ratio: { dims: [1], values: [height / width] },
  };
  return Object.fromEntries(Object.entries(size).filter(([name]) => denoiser.inputs.has(name)));
}
