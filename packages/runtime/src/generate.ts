import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { Autoencoder } from "./autoencoder.ts";
import type { PictureSize } from "./default-size.ts";
import { type Control, type DenoiseRow, denoise, type ModelRun, type StepInfo } from "./denoise.ts";
import type { Conditions, Drawing, Family, PromptEncoding } from "./families/family.ts";
import { checkImage, isPainted, type Mask, type RgbImage, resizeNearest } from "./images.ts";
import { SeededRandom } from "./noise.ts";
import type { Component, OrtModule } from "./ort.ts";
import { createScheduler, type Scheduler } from "./schedulers/index.ts";
import type { Task } from "./tasks.ts";
import type { TextEncoder } from "./text-encoder.ts";

/** One picture to make. What is left out comes from the task, then from the defaults named here. */
export interface GenerateOptions {
  /** Default: the task's, else empty. */
  prompt?: string;
  /** What guidance leads away from. Default: the task's, else empty. */
  negativePrompt?: string;
  /** Picture to change, to complete or to be guided by; as large as the result. */
  image?: RgbImage;
  /** Where to paint; resized to the picture by nearest neighbour. Needs an inpainting model (9 channels) and an image. */
  mask?: Mask;
  /** Whole number; the same seed gives the same noise everywhere. Default: drawn at random, see the result. */
  seed?: number;
  /** Start noise of unit variance; the seed then only serves schedulers that add noise at every step: `[latent channels, height / factor, width / factor]`. */
  latents?: Float32Array;
  /**
   * Noise of unit variance for schedulers that add some at every step, as large as the latents; called with 0, 1, ... Default:
   * drawn from the seed.
   */
  stepNoise?: (index: number) => Float32Array;
  /** Default: the task's, else what the family's models are drawn with: 20 for Stable Diffusion. */
  steps?: number;
  /**
   * Classifier-free guidance; 1 and below turn it off and halve the work. Default: the task's, else the family's: 7.5 for
   * Stable Diffusion. Models that take guidance as an input (Flux, LCM) get it there.
   */
  guidance?: number;
  /** For models that take guidance as an input: classifier-free guidance beside it, by a negative prompt. Default: 1, none. */
  trueGuidance?: number;
  /** Guidance by the image, for models that change pictures by instruction; 1: none. Default: the family's, 1.5 for InstructPix2Pix. */
  imageGuidance?: number;
  /** Share of the guided prediction that is brought back to the deviation without guidance, 0 to 1: 0.7 for zero-SNR models. */
  guidanceRescale?: number;
  /** What a ControlNet sees, as large as the result. */
  controlImage?: RgbImage;
  /** Strength of the ControlNet. Default: 1. */
  controlScale?: number;
  /** Inputs of the network in the place of prompts, by name and without the batch axis: for folders without text encoders. */
  conditions?: { prompt: Conditions; negative?: Conditions };
  /** Another scheduler class of diffusers (`"EulerDiscreteScheduler"`), or configuration keys to override. */
  scheduler?: string | Record<string, unknown>;
  /**
   * Image-to-image: how much of the noise schedule to run, in (0, 1], starting from the image's latents with noise added.
   * Default: 0.8 for 4-channel models with an image, which can use it in no other way; else 1, a start from pure noise.
   */
  denoise?: number;
  /** Pixels. Default: the image's size, else the size that the model was trained with. */
  width?: number;
  height?: number;
  /** Checked before every step. */
  signal?: AbortSignal;
  onStep?: (info: StepInfo) => void;
  /** Called after every run of the denoising network with what went in and came out. */
  onModelRun?: (run: ModelRun) => void;
}

/** A finished picture, and what made it. */
export interface GeneratedImage {
  width: number;
  height: number;
  /** `height * width * 3` bytes: red, green, blue. */
  data: Uint8Array;
  /** Final scaled latents, `[latent channels, height / factor, width / factor]`. */
  latents: Float32Array;
  /** Gives the same picture again, together with the same options. */
  seed: number;
  steps: number;
  guidance: number;
  /** Wall-clock time by stage. */
  milliseconds: { encode: number; denoise: number; decode: number };
}

/** What a pipeline hands over for one picture. */
export interface GenerateContext {
  ort: OrtModule;
  family: Family;
  denoiser: Component;
  /** The second network of families with one. */
  control: Component | undefined;
  autoencoder: Autoencoder;
  /** By component, those that the folder has. */
  encoders: ReadonlyMap<string, TextEncoder>;
  schedulerConfig: Record<string, unknown>;
  schedulerFile: string;
  defaultSize: PictureSize;
  task: Task;
  /** Adapter tensors of a component; `key` says which adapters its text encoder works with. */
  adapters: (component: string) => Record<string, Tensor>;
  adapterKey: (component: string) => string;
}

/** Makes one picture; see {@link GenerateOptions}. The work behind `Pipeline.generate`. */
export async function generateImage(context: GenerateContext, options: GenerateOptions): Promise<GeneratedImage> {
  const { ort, family, denoiser, autoencoder } = context;
  options.signal?.throwIfAborted();
  const request = checkRequest(context, options);
  const { width, height, latentWidth, latentHeight, image, mask, denoiseShare, steps, guidance } = request;
  const { latentChannels } = autoencoder;
  const size = latentChannels * latentHeight * latentWidth;
  const started = performance.now();

  const drawing: Drawing = { denoiser, width, height, latentChannels, latentWidth, latentHeight, guidance };
  const prompts = await encodePrompts(context, options, drawing);
  const imageLatents = image && (denoiseShare < 1 || !mask) ? await autoencoder.encode(image) : undefined;
  const conditioning = await buildConditioning(context, request, imageLatents);
  const rows = rowsOf(prompts, conditioning, request);

  const scheduler = schedulerFor(context, options.scheduler, steps, family.schedule?.(drawing, steps));
  // As diffusers' `get_timesteps`: whole steps only, and at least one.
  const skipped = steps - Math.max(1, Math.min(steps, Math.floor(steps * denoiseShare)));
  const firstIndex = scheduler.order * skipped;
  const seed = options.seed ?? (options.latents ? 0 : Math.floor(Math.random() * 2 ** 31));
  const random = new SeededRandom(seed);
  const noise = options.latents ?? Float32Array.from({ length: size }, () => random.normal());
  let stepNoise: Float32Array | undefined;
  let drawn = 0;
  const latents = new Float32Array(size);
  if (denoiseShare < 1) scheduler.addNoise(imageLatents!, noise, firstIndex, latents);
  else for (let i = 0; i < size; i++) latents[i] = noise[i] * scheduler.initNoiseSigma;

  const encoded = performance.now();
  await denoise({
    ...{ ort, family, denoiser, scheduler, latents, latentChannels, rows, firstIndex },
    adapters: context.adapters(family.denoiser),
    height: latentHeight,
    width: latentWidth,
    shared: family.shared?.(drawing, prompts.prompt) ?? {},
    layout: family.layout?.(drawing),
    control: controlOf(context, options, request),
    combine: combination(prompts, request, options.guidanceRescale ?? 0),
    stepNoise: () => {
      if (options.stepNoise) return options.stepNoise(drawn++);
      stepNoise ??= new Float32Array(size);
      for (let i = 0; i < size; i++) stepNoise[i] = random.normal();
      return stepNoise;
    },
    signal: options.signal,
    onStep: options.onStep,
    onModelRun: options.onModelRun,
  });
  const denoised = performance.now();
  options.signal?.throwIfAborted();
  const { data } = await autoencoder.decode(latents, width, height);
  const milliseconds = {
    encode: encoded - started,
    denoise: denoised - encoded,
    decode: performance.now() - denoised,
  };
  return { width, height, data, latents, seed, steps, guidance, milliseconds };
}

/** What the UNet's input channels leave for conditioning decides what the model is. */
type Kind = "plain" | "image" | "inpaint";

interface Request {
  kind: Kind;
  width: number;
  height: number;
  latentWidth: number;
  latentHeight: number;
  image: RgbImage | undefined;
  /** As large as the picture. */
  mask: Mask | undefined;
  denoiseShare: number;
  steps: number;
  guidance: number;
  imageGuidance: number;
}

/** The nearest sizes that fit. */
function fitting(size: number, unit: number): string {
  const below = Math.max(unit, Math.floor(size / unit) * unit);
  return Number.isFinite(size) ? `${below} or ${below + unit}` : String(unit);
}

function checkRequest(context: GenerateContext, options: GenerateOptions): Request {
  const { family, denoiser, autoencoder, task } = context;
  const { image } = options;
  const kind = family.layout ? "plain" : kindOf(context);
  for (const input of task.inputs ?? []) {
    if (options[input] !== undefined || (input === "prompt" && task.prompt !== undefined)) continue;
    throw new InputError({ what: `this task needs the option "${input}"`, got: "nothing" });
  }
  if (image) checkImage("image", image, 3);
  if (options.mask) checkImage("mask", options.mask, 1);
  if (options.mask && !image) throw new InputError({ what: "a mask needs an image to paint into" });
  if (options.mask && kind !== "inpaint") {
    throw new InputError({
      what: "this model cannot inpaint: its UNet has no input for a mask",
      file: denoiser.file,
      fix: "Leave the mask out, or use an inpainting model.",
    });
  }
  if (kind === "image" && !image) throw new InputError({ what: "this model changes images: it needs one" });

  // Latents come in pixels of the autoencoder and in patches of the network.
  const unit = autoencoder.factor * family.patch;
  const { factor } = autoencoder;
  const width = options.width ?? image?.width ?? context.defaultSize.width;
  const height = options.height ?? image?.height ?? context.defaultSize.height;
  const shape = family.layout ? [] : denoiser.input(family.sample).shape;
  for (const [name, size, axis] of [
    ["height", height, 2],
    ["width", width, 3],
  ] as const) {
    const fixed = shape[axis];
    const possible = Number.isInteger(size) && size > 0 && size % unit === 0;
    if (possible && (typeof fixed !== "number" || fixed === size / factor)) continue;
    throw new InputError({
      what: `this ${name} does not fit the model`,
      expected:
        typeof fixed === "number"
          ? String(fixed * factor)
          : `a multiple of ${unit} pixels, such as ${fitting(size, unit)}`,
      got: String(size),
    });
  }
  if (image && (image.width !== width || image.height !== height)) {
    throw new InputError({
      what: "the image has another size than the picture to make",
      expected: `${width} x ${height}`,
      got: `${image.width} x ${image.height}`,
      fix: "Resize the image first.",
    });
  }
  const denoiseShare = options.denoise ?? (kind === "plain" && image ? 0.8 : 1);
  if (!(denoiseShare > 0 && denoiseShare <= 1)) {
    throw new InputError({ what: "denoise is out of range", expected: "(0, 1]", got: String(denoiseShare) });
  }
  if (denoiseShare < 1 && !image)
    throw new InputError({ what: "denoise below 1 starts from an image: none was given" });
  const steps = options.steps ?? task.steps ?? family.defaults.steps;
  if (!Number.isInteger(steps) || steps < 1) {
    throw new InputError({ what: "steps is not a positive whole number", got: String(steps) });
  }
  const guidance = options.guidance ?? task.guidance ?? family.defaults.guidance;
  const imageGuidance = options.imageGuidance ?? family.imageGuidance ?? 1;
  for (const [what, value] of Object.entries({
    ...{ guidance, imageGuidance },
    ...{ trueGuidance: options.trueGuidance ?? 1, guidanceRescale: options.guidanceRescale ?? 0 },
    controlScale: options.controlScale ?? 1,
  })) {
    if (!Number.isFinite(value)) throw new InputError({ what: `${what} is not a finite number`, got: String(value) });
  }
  if (imageGuidance !== 1 && kind !== "image") {
    throw new InputError({ what: "this model has no guidance by an image", got: `imageGuidance ${imageGuidance}` });
  }
  if (options.seed !== undefined && !Number.isSafeInteger(options.seed)) {
    throw new InputError({
      what: "seed is not a whole number that JavaScript holds exactly",
      got: String(options.seed),
    });
  }
  const [latentWidth, latentHeight] = [width / factor, height / factor];
  const expected = autoencoder.latentChannels * latentHeight * latentWidth;
  if (options.latents && options.latents.length !== expected) {
    throw new InputError({
      what: "latents have the wrong length",
      expected: `${autoencoder.latentChannels} x ${latentHeight} x ${latentWidth} = ${expected}`,
      got: String(options.latents.length),
    });
  }
  const mask = options.mask && {
    width,
    height,
    data: resizeNearest(options.mask.data, options.mask, { width, height }),
  };
  return { kind, width, height, latentWidth, latentHeight, image, mask, denoiseShare, steps, guidance, imageGuidance };
}

function kindOf({ family, denoiser, autoencoder: { latentChannels } }: GenerateContext): Kind {
  const channels = denoiser.input(family.sample).shape[1];
  // Networks of free channels take latents alone.
  if (channels === latentChannels || typeof channels !== "number") return "plain";
  if (channels === 2 * latentChannels) return "image";
  if (channels === 2 * latentChannels + 1) return "inpaint";
  throw new InputError({
    what: "a network with this number of input channels is not supported",
    file: denoiser.file,
    where: family.sample,
    expected: `${latentChannels}, ${2 * latentChannels} (image conditioning) or ${2 * latentChannels + 1} (inpainting)`,
    got: String(channels),
  });
}

/** Inputs of the rows with and without the prompt. */
interface Prompts {
  prompt: Conditions;
  /** Where guidance leads away from something. */
  negative: Conditions | undefined;
  /** Strength of that guidance. */
  guidance: number;
}

/**
 * Encodes what the rows need. Guidance is off at 1 and below, as in diffusers: models that were distilled without it are
 * called with 0 as often as with 1.
 */
async function encodePrompts(context: GenerateContext, options: GenerateOptions, drawing: Drawing): Promise<Prompts> {
  const { family, task } = context;
  const negative = options.negativePrompt ?? task.negativePrompt;
  const guidance = family.embedsGuidance ? (options.trueGuidance ?? 1) : drawing.guidance;
  const isGuided = guidance > 1 && (!family.embedsGuidance || negative !== undefined);
  const given = options.conditions;
  if (given) {
    if (isGuided && !given.negative) {
      throw new InputError({
        what: "guidance needs the negative prompt's conditions, too",
        expected: "conditions.negative",
      });
    }
    return { prompt: given.prompt, negative: isGuided ? given.negative : undefined, guidance };
  }
  const encode = async (text: string): Promise<Conditions> => {
    const encodings = new Map<string, PromptEncoding>();
    for (const [name, encoder] of context.encoders) {
      encodings.set(name, await encoder.encode(text, context.adapters(name), context.adapterKey(name)));
    }
    if (encodings.size === 0) {
      throw new InputError({
        what: "this folder has no text encoder",
        file: context.schedulerFile.replace(/scheduler\W.*$/, ""),
        fix: "Give the prompt's encoding in the option conditions, or export the text encoder to ONNX.",
      });
    }
    return family.conditions(encodings, drawing);
  };
  const prompt = await encode(options.prompt ?? task.prompt ?? "");
  if (!isGuided) return { prompt, negative: undefined, guidance };
  if (negative === undefined && family.withoutNegative) {
    return { prompt, negative: family.withoutNegative(prompt), guidance };
  }
  return { prompt, negative: await encode(negative ?? ""), guidance };
}

/** Rows in the order that {@link combination} reads: without the picture, without the prompt, with both. */
function rowsOf({ prompt, negative }: Prompts, conditioning: Float32Array, { imageGuidance }: Request): DenoiseRow[] {
  if (!negative) return [{ conditions: prompt, conditioning }];
  const rows = [
    { conditions: negative, conditioning },
    { conditions: prompt, conditioning },
  ];
  if (imageGuidance === 1) return rows;
  return [{ conditions: negative, conditioning: new Float32Array(conditioning.length) }, ...rows];
}

/**
 * One prediction of several: `negative + guidance (prompt - negative)` (Ho and Salimans, "Classifier-free diffusion guidance",
 * 2022); with a picture `none + imageGuidance (negative - none) + guidance (prompt - negative)` (InstructPix2Pix, equation 3).
 * @param rescale - share of the prediction that is brought to the deviation of the prompt's own (Lin et al., "Common Diffusion
 *   Noise Schedules and Sample Steps are Flawed", 2024, section 3.4)
 */
function combination({ negative, guidance }: Prompts, { imageGuidance }: Request, rescale: number) {
  return (predictions: readonly Float32Array[], into: Float32Array): void => {
    if (!negative) {
      into.set(predictions[0]);
      return;
    }
    const prompt = predictions[predictions.length - 1];
    const without = predictions[predictions.length - 2];
    if (predictions.length === 2) {
      for (let i = 0; i < into.length; i++) into[i] = without[i] + guidance * (prompt[i] - without[i]);
    } else {
      const [none] = predictions;
      for (let i = 0; i < into.length; i++) {
        into[i] = none[i] + imageGuidance * (without[i] - none[i]) + guidance * (prompt[i] - without[i]);
      }
    }
    if (rescale === 0) return;
    const factor = rescale * (deviationOf(prompt) / deviationOf(into)) + (1 - rescale);
    for (let i = 0; i < into.length; i++) into[i] *= factor;
  };
}

function deviationOf(values: Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  const mean = sum / values.length;
  let squares = 0;
  for (const value of values) squares += (value - mean) ** 2;
  return Math.sqrt(squares / (values.length - 1));
}

function controlOf(
  { family, control, adapters }: GenerateContext,
  { controlImage, controlScale = 1 }: GenerateOptions,
  { width, height }: Request,
): Control | undefined {
  if (!control) {
    if (!controlImage) return undefined;
    throw new InputError({ what: "this model takes no control image", fix: "Leave controlImage out." });
  }
  if (!controlImage) throw new InputError({ what: "this model draws by a control image: none was given" });
  checkImage("controlImage", controlImage, 3);
  if (controlImage.width !== width || controlImage.height !== height) {
    throw new InputError({
      what: "the control image has another size than the picture to make",
      expected: `${width} x ${height}`,
      got: `${controlImage.width} x ${controlImage.height}`,
      fix: "Resize the control image first.",
    });
  }
  const plane = width * height;
  const values = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++)
      values[channel * plane + i] = controlImage.data[3 * i + channel] / 255;
  }
  const picture = { dims: [3, height, width], values };
  return { component: control, adapters: adapters(family.control!), picture, scale: controlScale };
}

/** Channels behind the latents: nothing; the image's latents; or the mask and the latents of what it leaves. */
async function buildConditioning(
  { autoencoder }: GenerateContext,
  { kind, image, mask, width, height, latentWidth, latentHeight }: Request,
  imageLatents: Float32Array | undefined,
): Promise<Float32Array> {
  if (kind === "plain") return new Float32Array(0);
  if (kind === "image") {
    // InstructPix2Pix conditions on unscaled latents.
    const { scaling_factor: scale } = autoencoder.config;
    return imageLatents!.map((value) => value / scale);
  }
  const plane = latentHeight * latentWidth;
  const latents = !image
    ? await autoencoder.encodeGrey(width, height)
    : mask
      ? await autoencoder.encode(image, mask)
      : imageLatents!;
  const conditioning = new Float32Array(plane + latents.length).fill(1, 0, plane);
  if (mask) {
    const small = resizeNearest(mask.data, mask, { width: latentWidth, height: latentHeight });
    for (let i = 0; i < plane; i++) conditioning[i] = isPainted(small[i]) ? 1 : 0;
  }
  conditioning.set(latents, plane);
  return conditioning;
}

function schedulerFor(
  context: GenerateContext,
  override: GenerateOptions["scheduler"],
  steps: number,
  picture: ReturnType<NonNullable<Family["schedule"]>> = {},
): Scheduler {
  const changes = typeof override === "string" ? { _class_name: override } : override;
  return createScheduler({ ...context.schedulerConfig, ...changes }, steps, {
    ...picture,
    file: context.schedulerFile,
  });
}
