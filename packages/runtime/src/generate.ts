import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { Autoencoder } from "./autoencoder.ts";
import type { PictureSize } from "./default-size.ts";
import { denoise, type ModelRun, type StepInfo } from "./denoise.ts";
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
  /** Default: the task's, else 20. */
  steps?: number;
  /** Classifier-free guidance; 1 turns it off and halves the work. Default: the task's, else 7.5. */
  guidance?: number;
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
  unet: Component;
  autoencoder: Autoencoder;
  textEncoder: TextEncoder;
  schedulerConfig: Record<string, unknown>;
  schedulerFile: string;
  defaultSize: PictureSize;
  task: Task;
  adapters: { key: string; unet: Record<string, Tensor>; textEncoder: Record<string, Tensor> };
}

/** Makes one picture; see {@link GenerateOptions}. The work behind `Pipeline.generate`. */
export async function generateImage(context: GenerateContext, options: GenerateOptions): Promise<GeneratedImage> {
  const { ort, unet, autoencoder, textEncoder, task, adapters } = context;
  options.signal?.throwIfAborted();
  const request = checkRequest(context, options);
  const { width, height, latentWidth, latentHeight, image, mask, denoiseShare, steps, guidance } = request;
  const { latentChannels } = autoencoder;
  const size = latentChannels * latentHeight * latentWidth;
  const started = performance.now();

  const encode = (prompt: string) => textEncoder.encode(prompt, adapters.textEncoder, adapters.key);
  const prompt = await encode(options.prompt ?? task.prompt ?? "");
  const unconditional = guidance === 1 ? undefined : await encode(options.negativePrompt ?? task.negativePrompt ?? "");
  const imageLatents = image && (denoiseShare < 1 || !mask) ? await autoencoder.encode(image) : undefined;
  const conditioning = await buildConditioning(context, request, imageLatents);

  const scheduler = schedulerFor(context, options.scheduler, steps);
  // As diffusers' `get_timesteps`: whole steps only, and at least one.
  const skipped = steps - Math.max(1, Math.min(steps, Math.floor(steps * denoiseShare)));
  const firstIndex = scheduler.order * skipped;
  const seed = options.seed ?? (options.latents ? 0 : Math.floor(Math.random() * 2 ** 31));
  const random = new SeededRandom(seed);
  const noise = options.latents ?? Float32Array.from({ length: size }, () => random.normal());
  let stepNoise: Float32Array | undefined;
  const latents = new Float32Array(size);
  if (denoiseShare < 1) scheduler.addNoise(imageLatents!, noise, firstIndex, latents);
  else for (let i = 0; i < size; i++) latents[i] = noise[i] * scheduler.initNoiseSigma;

  const encoded = performance.now();
  await denoise({
    ort,
    unet,
    scheduler,
    adapters: adapters.unet,
    latents,
    latentChannels,
    height: latentHeight,
    width: latentWidth,
    conditioning,
    prompt,
    unconditional,
    guidance,
    firstIndex,
    stepNoise: () => {
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
}

function checkRequest(context: GenerateContext, options: GenerateOptions): Request {
  const { unet, autoencoder, task } = context;
  const { image } = options;
  const kind = kindOf(unet, autoencoder.latentChannels);
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
      file: unet.file,
      fix: "Leave the mask out, or use an inpainting model.",
    });
  }
  if (kind === "image" && !image) throw new InputError({ what: "this model changes images: it needs one" });

  const { factor } = autoencoder;
  const width = options.width ?? image?.width ?? context.defaultSize.width;
  const height = options.height ?? image?.height ?? context.defaultSize.height;
  const shape = unet.input("sample").shape;
  for (const [name, size, axis] of [
    ["height", height, 2],
    ["width", width, 3],
  ] as const) {
    const fixed = shape[axis];
    const possible = Number.isInteger(size) && size > 0 && size % factor === 0;
    if (possible && (typeof fixed !== "number" || fixed === size / factor)) continue;
    throw new InputError({
      what: `this ${name} does not fit the model`,
      expected: typeof fixed === "number" ? String(fixed * factor) : `a multiple of ${factor} pixels`,
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
  const steps = options.steps ?? task.steps ?? 20;
  if (!Number.isInteger(steps) || steps < 1) {
    throw new InputError({ what: "steps is not a positive whole number", got: String(steps) });
  }
  const guidance = options.guidance ?? task.guidance ?? 7.5;
  if (!Number.isFinite(guidance))
    throw new InputError({ what: "guidance is not a finite number", got: String(guidance) });
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
  return { kind, width, height, latentWidth, latentHeight, image, mask, denoiseShare, steps, guidance };
}

function kindOf(unet: Component, latentChannels: number): Kind {
  const channels = unet.input("sample").shape[1];
  if (channels === latentChannels) return "plain";
  if (channels === 2 * latentChannels) return "image";
  if (channels === 2 * latentChannels + 1) return "inpaint";
  throw new InputError({
    what: "a UNet with this number of input channels is not supported",
    file: unet.file,
    where: "sample",
    expected: `${latentChannels}, ${2 * latentChannels} (image conditioning) or ${2 * latentChannels + 1} (inpainting)`,
    got: String(channels),
  });
}

/** Channels behind the latents: nothing; the image's latents; or the mask and the latents of what it leaves. */
async function buildConditioning(
  { autoencoder }: GenerateContext,
  { kind, image, mask, width, height, latentWidth, latentHeight }: Request,
  imageLatents: Float32Array | undefined,
): Promise<Float32Array> {
  if (kind === "plain") return new Float32Array(0);
  if (kind === "image") {
    // InstructPix2Pix conditions on unscaled latents; both rows of the guidance see them (image guidance 1).
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

function schedulerFor(context: GenerateContext, override: GenerateOptions["scheduler"], steps: number): Scheduler {
  const changes = typeof override === "string" ? { _class_name: override } : override;
  return createScheduler({ ...context.schedulerConfig, ...changes }, steps, { file: context.schedulerFile });
}
