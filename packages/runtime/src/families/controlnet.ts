import type { Family } from "./family.ts";
import { stableDiffusion } from "./stable-diffusion.ts";

/**
 * ControlNet on Stable Diffusion: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (2023). A second
 * network sees the latents and a control picture; its outputs are added to the UNet's connections.
 */
export const controlNet: Family = {
  ...stableDiffusion,
  name: "ControlNet",
  pipelineClasses: ["StableDiffusionControlNetPipeline"],
  control: "controlnet",
};
