import type { Family } from "./family.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
import { stableDiffusionXl } from "./stable-diffusion-xl.ts";

/**
 * Brooks et al., "InstructPix2Pix: Learning to Follow Image Editing Instructions" (2023): an image's latents behind the noisy
 * ones, and a guidance for each of image and prompt.
 */
export const instructPix2Pix: Family = {
  ...stableDiffusion,
  name: "InstructPix2Pix",
  pipelineClasses: ["StableDiffusionInstructPix2PixPipeline"],
  defaults: { ...stableDiffusion.defaults, imageGuidance: 1.5 },
};

export const instructPix2PixXl: Family = {
  ...stableDiffusionXl,
  name: "InstructPix2Pix XL",
  pipelineClasses: ["StableDiffusionXLInstructPix2PixPipeline"],
  defaults: { ...stableDiffusionXl.defaults, imageGuidance: 1.5 },
};
