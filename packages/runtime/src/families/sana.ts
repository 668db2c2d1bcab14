import type { Family } from "./family.ts";
import { encodeMasked, maskedEncoder } from "./masked-encoder.ts";

/**
 * Sana: Xie et al., "Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers" (2024). Flow matching
 * on latents of a deep-compression autoencoder. Its Gemma is often left out of a folder: prompts then come as embeddings.
 */
export const sana: Family = {
  name: "Sana",
  pipelineClasses: ["SanaPipeline"],
  denoiser: "transformer",
  requires: ["encoder_attention_mask"],
  sample: "hidden_states",
  output: "out_hidden_states",
  encoders: [{ ...maskedEncoder(300), optional: true }],
  isFlow: true,
  defaults: { guidance: 4.5, steps: 20, size: 32 },
  patch: 1,
  timestep: { scale: 1, perRow: true },
  encodePrompt: encodeMasked,
};
