import type { Autoencoder } from "./autoencoder.ts";
import type { PictureSize } from "./default-size.ts";
import type { ModelRun, Network, StepInfo } from "./denoise.ts";
import type { Conditions, Family } from "./families/family.ts";
import type { Mask, RgbImage } from "./images.ts";
import type { OrtModule } from "./ort.ts";
import type { Task } from "./tasks.ts";

/** One picture to make. What is left out comes from the task, then from the defaults named here. */
export interface GenerateOptions {
  /** Default: the task's, else empty. */
  prompt?: string;
  /** What guidance leads away from. Default: the task's; else the family's stand-in for none, which mostly is the empty prompt. */
  negativePrompt?: string;
  /** In the place of prompts: what they were encoded to, as `Pipeline.encodePrompt` gives it. For folders without text encoders. */
  conditions?: { prompt: Conditions; negative?: Conditions };
  /** Picture to change, to complete or to be guided by; as large as the result. */
  image?: RgbImage;
  /** Where to paint; resized to the picture by nearest neighbour. Needs an inpainting model (9 channels) and an image. */
  mask?: Mask;
  /** Whole number; the same seed gives the same noise everywhere. Default: drawn at random, see the result. */
  seed?: number;
  /** Start noise of unit variance; the seed then only serves schedulers that add noise at every step: `[latent channels, height / factor, width / factor]`. */
  latents?: Float32Array;
  /** Picture that a ControlNet follows (edges, poses, depth); as large as the result. */
  controlImage?: RgbImage;
  /** How much the ControlNet adds; 1 by default. */
  controlScale?: number;
  /** Unit-variance noise for schedulers that add some at every step, in place of the seed's. @param draw - counts from 0 */
  stepNoise?: (draw: number) => Float32Array;
  /** Default: the task's, else the family's. */
  steps?: number;
  /** Classifier-free guidance; 1 and less turn it off and save a row. Default: the task's, else the family's. */
  guidance?: number;
  /** How closely a model that changes images keeps to them (InstructPix2Pix); 1 turns it off. Default: the family's. */
  imageGuidance?: number;
  /** Guidance by the negative prompt where the model takes `guidance` as an input (Flux); off at and below 1, the default. */
  trueGuidance?: number;
  /** Share by which guided predictions get back the spread they have without guidance, 0 (default) to 1; models of zero terminal signal-to-noise want 0.7. */
  guidanceRescale?: number;
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
  /** Content of `model_index.json`. */
  index: Readonly<Record<string, unknown>>;
  denoiser: Network;
  companion: Network | undefined;
  autoencoder: Autoencoder;
  encodePrompt: (prompt: string) => Promise<Conditions>;
  schedulerConfig: Record<string, unknown>;
  schedulerFile: string;
  defaultSize: PictureSize;
  task: Task;
}
