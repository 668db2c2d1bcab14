import { type Family, lastStates } from "./family.ts";

/** Stable Diffusion 1 and 2: one CLIP, a UNet; inpainting has further channels behind the latents. */
export const stableDiffusion: Family = {
  name: "Stable Diffusion",
  pipelineClasses: [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "OnnxStableDiffusionPipeline",
    "OnnxStableDiffusionImg2ImgPipeline",
    "OnnxStableDiffusionInpaintPipeline",
  ],
  denoiser: "unet",
  sample: "sample",
  output: "out_sample",
  encoders: [{ component: "text_encoder", tokenizer: "tokenizer", outputs: lastStates }],
  isFlow: false,
  defaults: { guidance: 7.5, steps: 20, size: 64 },
  patch: 1,
  timestep: { scale: 1, perRow: false },
  conditions: (prompt) => ({ encoder_hidden_states: prompt.get("text_encoder")!.states }),
};
