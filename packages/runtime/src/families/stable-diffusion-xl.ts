import {
  type Conditions,
  type Drawing,
  type Family,
  type PromptEncoding,
  penultimateAndPooled,
  penultimateStates,
} from "./family.ts";
import { sideBySide, zerosLike } from "./rows.ts";
import { unet } from "./unet.ts";

/**
 * Stable Diffusion XL with its Turbo, Lightning and inpainting models: Podell et al., "SDXL: Improving Latent Diffusion Models
 * for High-Resolution Image Synthesis" (2023). Two CLIPs side by side, the second one's pooled state, and the picture's size.
 */
export const stableDiffusionXl: Family = {
  ...unet,
  name: "Stable Diffusion XL",
  pipelineClasses: [
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
  ],
  requires: ["text_embeds", "time_ids"],
  encoders: [
    { component: "text_encoder", tokenizer: "tokenizer", outputs: penultimateStates },
    { component: "text_encoder_2", tokenizer: "tokenizer_2", outputs: penultimateAndPooled },
  ],
  defaults: { guidance: 5, steps: 30, size: 128 },
  encodePrompt,
  absentNegative: (prompt, { force_zeros_for_empty_prompt: zeros = true }) => (zeros ? zerosLike(prompt) : undefined),
  constants,
};

function encodePrompt(texts: ReadonlyMap<string, PromptEncoding>): Conditions {
  const [first, second] = [texts.get("text_encoder")!, texts.get("text_encoder_2")!];
  return {
    encoder_hidden_states: sideBySide(first.states, second.states),
    text_embeds: second.outputs.get("text_embeds")!,
  };
}

/** Height and width of the original, top and left of the crop, height and width of the target: nothing is cropped. */
function constants({ width, height }: Drawing): Conditions {
  return { time_ids: { dims: [6], values: [height, width, 0, 0, height, width] } };
}
