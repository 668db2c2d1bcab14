import { InputError } from "@quad-lora/base";
import { imageToShares } from "../images.ts";
import type { Component } from "../ort.ts";
import type { Companion, Conditions, Drawing, Family } from "./family.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
import { stableDiffusionXl } from "./stable-diffusion-xl.ts";

/**
 * Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (2023): a copy of the UNet's first half sees the
 * control image, and adds to what the UNet's second half gets.
 */
const controlNetwork: Companion = {
  component: "controlnet",
  conditions,
  inputFor: (output) =>
    output.replace("block_res_samples", "block_additional_residuals").replace("res_sample", "additional_residual"),
};

function withControlNet(base: Family, name: string, pipelineClasses: readonly string[]): Family {
  return {
    ...base,
    name,
    pipelineClasses: [...pipelineClasses, ...base.pipelineClasses],
    requires: [...base.requires, "mid_block_additional_residual"],
    companion: controlNetwork,
  };
}

export const controlNet = withControlNet(stableDiffusion, "ControlNet", [
  "StableDiffusionControlNetPipeline",
  "StableDiffusionControlNetImg2ImgPipeline",
  "StableDiffusionControlNetInpaintPipeline",
]);

export const controlNetXl = withControlNet(stableDiffusionXl, "ControlNet XL", [
  "StableDiffusionXLControlNetPipeline",
  "StableDiffusionXLControlNetImg2ImgPipeline",
  "StableDiffusionXLControlNetInpaintPipeline",
]);

function conditions({ controlImage, controlScale, width, height }: Drawing, graph: Component): Conditions {
  const image = { controlnet_cond: { dims: [3, height, width], values: imageToShares(controlImage!) } };
  if (graph.inputs.has("conditioning_scale"))
    return { ...image, conditioning_scale: { dims: [], values: [controlScale] } };
  if (controlScale === 1) return image;
  throw new InputError({
    what: "this ControlNet has no input for a scale",
    file: graph.file,
    where: "conditioning_scale",
    expected: "controlScale 1",
    got: String(controlScale),
    fix: "Export it with the scale as an input.",
  });
}
