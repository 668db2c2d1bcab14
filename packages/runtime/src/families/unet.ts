import { InputError } from "@quad-lora/base";
import { isPainted, resizeNearest } from "../images.ts";
import type { Component } from "../ort.ts";
import type { Drawing, Guided, ImageUse, Prompts } from "./family.ts";
import { classifierFree } from "./guidance.ts";

/** What the networks of the families before the transformers have in common. */
export const unet = {
  denoiser: "unet",
  sample: "sample",
  output: "out_sample",
  isFlow: false,
  patch: 1,
  timestep: { scale: 1, perRow: false },
  imageUse,
  guide,
} as const;

/** Guidance between prompts; away from no image, too, where one is a condition. */
async function guide(prompts: Prompts, drawing: Drawing): Promise<Guided> {
  const { guidance, imageGuidance, imageUse } = drawing;
  const behind = await channelsBehind(drawing);
  // As in diffusers, image guidance below 1 turns off both.
  if (imageUse === "condition" && imageGuidance < 1) return classifierFree(prompts, 1, behind);
  const guided = await classifierFree(prompts, guidance, behind);
  // At 1 the row without an image would cancel out.
  if (imageUse !== "condition" || imageGuidance === 1 || guided.rows.length === 1) return guided;
  const [image] = guided.rows;
  const neither = { conditions: image.conditions, behind: new Float32Array(behind!.length) };
  return { rows: [neither, ...guided.rows], strengths: [imageGuidance, ...guided.strengths] };
}

/** What the network's input channels leave for conditioning decides what the model is. */
function imageUse(denoiser: Component, latentChannels: number): ImageUse {
  const channels = denoiser.input("sample").shape[1];
  const use = imageUseOf(channels, latentChannels);
  if (use) return use;
  throw new InputError({
    what: "a UNet with this number of input channels is not supported",
    file: denoiser.file,
    where: "sample",
    expected: `${latentChannels}, ${2 * latentChannels} (image conditioning) or ${2 * latentChannels + 1} (inpainting)`,
    got: String(channels),
  });
}

/** @param channels - of the network's input; undefined comes of a number that no kind of model has */
export function imageUseOf(channels: number | string, latentChannels: number): ImageUse | undefined {
  // Networks of free channels take latents alone.
  if (channels === latentChannels || typeof channels !== "number") return "start";
  if (channels === 2 * latentChannels) return "condition";
  return channels === 2 * latentChannels + 1 ? "inpaint" : undefined;
}

/** What {@link channelsBehind} reads of a picture to draw. */
type Conditioned = Pick<Drawing, "imageUse" | "autoencoder" | "image" | "mask" | "width" | "height" | "imageLatents">;

/** Channels behind the latents: nothing; the image's latents; or the mask and the latents of what it leaves. */
export async function channelsBehind(drawing: Conditioned): Promise<Float32Array | undefined> {
  if (drawing.imageUse === "start") return undefined;
  const { autoencoder, image, mask, width, height } = drawing;
  // InstructPix2Pix conditions on unscaled latents.
  if (drawing.imageUse === "condition") return autoencoder.unscale(await drawing.imageLatents());
  const latents = !image
    ? await autoencoder.encodeGrey(width, height)
    : mask
      ? await autoencoder.encode(image, mask)
      : await drawing.imageLatents();
  const small = { width: width / autoencoder.factor, height: height / autoencoder.factor };
  const plane = small.width * small.height;
  const behind = new Float32Array(plane + latents.length).fill(1, 0, plane);
  if (mask) {
    const values = resizeNearest(mask.data, mask, small);
    for (let i = 0; i < plane; i++) behind[i] = isPainted(values[i]) ? 1 : 0;
  }
  behind.set(latents, plane);
  return behind;
}
