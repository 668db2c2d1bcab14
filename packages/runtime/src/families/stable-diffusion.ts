import { type Family, lastStates } from "./family.ts";
import { unet } from "./unet.ts";

/**
 * Stable Diffusion 1 and 2 with their Turbo and inpainting models: one CLIP, a UNet. Rombach et al., "High-Resolution Image
 * Synthesis with Latent Diffusion Models" (2022). Whether the network predicts noise or velocity says the scheduler's
 * configuration.
 */
export const stableDiffusion: Family = {
  ...unet,
  name: "Stable Diffusion",
  pipelineClasses: [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
  ],
  requires: [],
  encoders: [{ component: "text_encoder", tokenizer: "tokenizer", outputs: lastStates }],
  defaults: { guidance: 7.5, steps: 20, size: 64 },
  encodePrompt: (texts) => ({ encoder_hidden_states: texts.get("text_encoder")!.states }),
};
