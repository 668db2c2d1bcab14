import { InputError } from "@quad-lora/base";
import type { Conditions, ImageUse } from "./families/family.ts";
import type { GenerateContext, GenerateOptions } from "./generate-options.ts";
import { checkImage, type Mask, type RgbImage, resizeNearest } from "./images.ts";

/** A checked request, with the task's and the family's defaults filled in. */
export interface Request {
  imageUse: ImageUse;
  /** Text, or what was encoded before. */
  prompt: string | Conditions;
  /** Undefined: not given. */
  negativePrompt: string | Conditions | undefined;
  width: number;
  height: number;
  latentWidth: number;
  latentHeight: number;
  image: RgbImage | undefined;
  /** As large as the picture. */
  mask: Mask | undefined;
  controlImage: RgbImage | undefined;
  controlScale: number;
  denoiseShare: number;
  steps: number;
  guidance: number;
  imageGuidance: number;
  trueGuidance: number;
  guidanceRescale: number;
}

/** @throws InputError for options that do not fit the model or the task */
export function checkRequest(context: GenerateContext, options: GenerateOptions): Request {
  const { task } = context;
  for (const input of task.inputs ?? []) {
    if (options[input] !== undefined || (input === "prompt" && task.prompt !== undefined)) continue;
    throw new InputError({ what: `this task needs the option "${input}"`, got: "nothing" });
  }
  const imageUse = checkImages(context, options);
  const size = checkSize(context, options);
  const { width, height } = size;
  const { image, controlImage } = options;
  const mask = options.mask && {
    width,
    height,
    data: resizeNearest(options.mask.data, options.mask, { width, height }),
  };
  return {
    ...size,
    ...checkNumbers(context, options, imageUse),
    imageUse,
    prompt: options.conditions?.prompt ?? options.prompt ?? task.prompt ?? "",
    negativePrompt: options.conditions?.negative ?? options.negativePrompt ?? task.negativePrompt,
    image,
    mask,
    controlImage,
  };
}

function checkImages({ family, denoiser, autoencoder }: GenerateContext, options: GenerateOptions): ImageUse {
  const { image, mask, controlImage } = options;
  const imageUse = family.imageUse?.(denoiser.graph, autoencoder.latentChannels) ?? "start";
  if (image) checkImage("image", image, 3);
  if (mask) checkImage("mask", mask, 1);
  if (controlImage) checkImage("control image", controlImage, 3);
  if (mask && !image) throw new InputError({ what: "a mask needs an image to paint into" });
  if (mask && imageUse !== "inpaint") {
    throw new InputError({
      what: "this model cannot inpaint: its denoiser has no input for a mask",
      file: denoiser.graph.file,
      fix: "Leave the mask out, or use an inpainting model.",
    });
  }
  if (options.imageGuidance !== undefined && imageUse !== "condition") {
    throw new InputError({
      what: "this model has no image guidance: its denoiser has no input for an image",
      file: denoiser.graph.file,
      fix: "Leave imageGuidance out, or use an InstructPix2Pix model.",
    });
  }
  if (options.trueGuidance !== undefined && !family.embedsGuidance) {
    throw new InputError({
      what: "trueGuidance is for models that take guidance as an input",
      file: denoiser.graph.file,
      fix: "Use the option guidance.",
    });
  }
  if (imageUse === "condition" && !image) throw new InputError({ what: "this model changes images: it needs one" });
  if (family.companion && !controlImage) {
    throw new InputError({ what: "this model is controlled by an image: it needs the option controlImage" });
  }
  if (controlImage && !family.companion) {
    throw new InputError({
      what: "this model takes no control image",
      file: denoiser.graph.file,
      fix: "Leave the control image out, or use a folder with a ControlNet.",
    });
  }
  return imageUse;
}

function checkSize(context: GenerateContext, options: GenerateOptions) {
  const { autoencoder, family, denoiser, defaultSize } = context;
  const { image, controlImage, latents } = options;
  const { factor, latentChannels } = autoencoder;
  const width = options.width ?? image?.width ?? controlImage?.width ?? defaultSize.width;
  const height = options.height ?? image?.height ?? controlImage?.height ?? defaultSize.height;
  const shape = family.layout ? [] : denoiser.graph.input(family.sample).shape;
  const multiple = factor * family.patch;
  for (const [name, size, axis] of [
    ["height", height, 2],
    ["width", width, 3],
  ] as const) {
    const fixed = shape[axis];
    const possible = Number.isInteger(size) && size > 0 && size % multiple === 0;
    if (possible && (typeof fixed !== "number" || fixed === size / factor)) continue;
    throw new InputError({
      what: `this ${name} does not fit the model`,
      expected:
        typeof fixed === "number"
          ? String(fixed * factor)
          : `a multiple of ${multiple} pixels, such as ${fitting(size, multiple)}`,
      got: String(size),
    });
  }
  checkTokens(context, width / multiple, height / multiple);
  for (const [name, picture] of [
    ["image", image],
    ["control image", controlImage],
  ] as const) {
    if (!picture || (picture.width === width && picture.height === height)) continue;
    throw new InputError({
      what: `the ${name} has another size than the picture to make`,
      expected: `${width} x ${height}`,
      got: `${picture.width} x ${picture.height}`,
      fix: `Resize the ${name} first.`,
    });
  }
  const [latentWidth, latentHeight] = [width / factor, height / factor];
  const expected = latentChannels * latentHeight * latentWidth;
  if (latents && latents.length !== expected) {
    throw new InputError({
      what: "latents have the wrong length",
      expected: `${latentChannels} x ${latentHeight} x ${latentWidth} = ${expected}`,
      got: String(latents.length),
    });
  }
  return { width, height, latentWidth, latentHeight };
}

/** A graph with packed latents that was compiled for one size has so many tokens, whatever their arrangement. */
function checkTokens({ family, denoiser }: GenerateContext, columns: number, rows: number): void {
  const tokens = family.layout && denoiser.graph.input(family.sample).shape[1];
  if (typeof tokens !== "number" || tokens === columns * rows) return;
  throw new InputError({
    what: "this size does not fit the model",
    file: denoiser.graph.file,
    expected: `a picture of ${tokens} tokens`,
    got: `${columns} x ${rows} = ${columns * rows}`,
    fix: "Draw the size that the graph was compiled for.",
  });
}

/** The nearest sizes that fit. */
function fitting(size: number, multiple: number): string {
  const below = Math.max(multiple, Math.floor(size / multiple) * multiple);
  return Number.isFinite(size) ? `${below} or ${below + multiple}` : String(multiple);
}

function checkNumbers({ task, family }: GenerateContext, options: GenerateOptions, imageUse: ImageUse) {
  const { image, seed } = options;
  const { defaults } = family;
  const denoiseShare = options.denoise ?? (imageUse === "start" && image ? 0.8 : 1);
  if (!(denoiseShare > 0 && denoiseShare <= 1)) {
    throw new InputError({ what: "denoise is out of range", expected: "(0, 1]", got: String(denoiseShare) });
  }
  if (denoiseShare < 1 && !image)
    throw new InputError({ what: "denoise below 1 starts from an image: none was given" });
  const steps = options.steps ?? task.steps ?? defaults.steps;
  if (!Number.isInteger(steps) || steps < 1) {
    throw new InputError({ what: "steps is not a positive whole number", got: String(steps) });
  }
  const scales = {
    guidance: options.guidance ?? task.guidance ?? defaults.guidance,
    imageGuidance: options.imageGuidance ?? defaults.imageGuidance ?? 1,
    trueGuidance: options.trueGuidance ?? 1,
    guidanceRescale: options.guidanceRescale ?? 0,
    controlScale: options.controlScale ?? 1,
  };
  for (const [name, value] of Object.entries(scales)) {
    if (!Number.isFinite(value)) throw new InputError({ what: `${name} is not a finite number`, got: String(value) });
  }
  if (scales.guidanceRescale < 0 || scales.guidanceRescale > 1) {
    throw new InputError({
      what: "guidanceRescale is out of range",
      expected: "[0, 1]",
      got: String(scales.guidanceRescale),
    });
  }
  if (seed !== undefined && !Number.isSafeInteger(seed)) {
    throw new InputError({ what: "seed is not a whole number that JavaScript holds exactly", got: String(seed) });
  }
  return { ...scales, denoiseShare, steps };
}
