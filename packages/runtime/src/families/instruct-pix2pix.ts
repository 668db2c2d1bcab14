import type { Family } from "./family.ts";
import { stableDiffusion } from "./stable-diffusion.ts";

/**
 * InstructPix2Pix: Brooks et al., "InstructPix2Pix: Learning to Follow Image Editing Instructions" (2023). The picture to
 * change stands behind the latents, and has a guidance of its own.
 */
export const instructPix2Pix: Family = {
  ...stableDiffusion,
  name: "InstructPix2Pix",
  pipelineClasses: ["StableDiffusionInstructPix2PixPipeline"],
  imageGuidance: 1.5,
};
