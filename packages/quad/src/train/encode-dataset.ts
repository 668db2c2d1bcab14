import { InputError } from "@quad-lora/base";
import { type Encoders, type Mask, openEncoders, type RgbImage } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles } from "../files/folder-files.ts";
import { readImage, readMask } from "../files/images.ts";
import type { StageOptions } from "../work/progress.ts";
import type { TrainingExample } from "./dataset.ts";

/** An example as the denoiser's training needs it. */
export interface EncodedExample {
  /** Scaled latents of the target, `[latent channels, height, width]`. */
  latents: Float32Array;
  /** What stands behind the noisy latents, `[channels - latent channels, height, width]`; may be empty. */
  conditioning: Float32Array;
  caption: string;
}

export interface EncodedDataset {
  examples: EncodedExample[];
  /** Hidden states by caption, `[tokens, width]`; the empty caption is always there. */
  texts: ReadonlyMap<string, Float32Array>;
  latentChannels: number;
  /** Latent size. */
  height: number;
  width: number;
  tokens: number;
  textWidth: number;
}

export interface EncodeOptions extends StageOptions {
  /** Input channels of the denoiser, which say how it is conditioned. */
  channels: number;
  /** Pixels; pictures are scaled and cropped to it. */
  size: { width: number; height: number };
  /** Adds every example mirrored. */
  flip: boolean;
  /** What to call it in progress. */
  stage?: string;
}

const sessionOptions: ort.InferenceSession.SessionOptions = {
  logSeverityLevel: 3,
  intraOpNumThreads: 2,
  interOpNumThreads: 1,
};

/**
 * Encodes pictures and captions once, as the runtime does when it draws. What stands behind the latents are the channels of
 * `Encoders.channelsBehind`, of the input, or of the target where only a mask is given.
 * @throws InputError for pictures that cannot be read, or that the denoiser has no input for
 */
export async function encodeDataset(
  modelFolder: string,
  examples: readonly TrainingExample[],
  { channels, size, flip, stage = "encoding", signal, onProgress }: EncodeOptions,
): Promise<EncodedDataset> {
  const encoders = await openEncoders({ ort: ort as never, files: folderFiles(modelFolder), sessionOptions });
  try {
    const { latentChannels } = encoders;
    const encoded: EncodedExample[] = [];
    const grey = { ...size, data: new Uint8Array(3 * size.width * size.height) };
    const [, height, width] = (await encoders.encodeImage(grey)).dims;
    const total = examples.length;
    for (const [index, example] of examples.entries()) {
      signal?.throwIfAborted();
      const target = await readImage(example.target, size);
      const input = example.input ? await readImage(example.input, size) : undefined;
      const mask = example.mask ? await readMask(example.mask, size) : undefined;
      refuseUnusable(example, channels, latentChannels);
      for (const mirrored of flip ? [false, true] : [false]) {
        const turn = <Picture extends RgbImage | Mask | undefined>(picture: Picture, depth: number): Picture =>
          mirrored && picture ? mirror(picture, depth) : picture;
        const shown = input ?? (mask ? target : undefined);
        encoded.push({
          latents: (await encoders.encodeImage(turn(target, 3))).values,
          conditioning: await encoders.channelsBehind(channels, size, turn(shown, 3), turn(mask, 1)),
          caption: example.caption,
        });
      }
      onProgress?.(stage, index + 1, total);
    }
    const captions = ["", ...encoded.map(({ caption }) => caption)];
    return { examples: encoded, ...(await encodeTexts(encoders, captions)), latentChannels, height, width };
  } finally {
    await encoders.dispose();
  }
}

async function encodeTexts(encoders: Encoders, captions: readonly string[]) {
  const texts = new Map<string, Float32Array>();
  let [tokens, textWidth] = [0, 0];
  for (const caption of new Set(captions)) {
    const { encoder_hidden_states: states } = await encoders.encodePrompt(caption);
    [tokens, textWidth] = states.dims;
    texts.set(caption, Float32Array.from(states.values));
  }
  return { texts, tokens, textWidth };
}

function refuseUnusable(example: TrainingExample, channels: number, latentChannels: number): void {
  const kind = channels / latentChannels;
  if (example.mask && kind <= 2) {
    throw new InputError({
      what: "this model cannot inpaint: its denoiser has no input for a mask",
      file: example.mask,
    });
  }
  if (example.input && kind === 1) {
    throw new InputError({
      what: "this model takes no picture: its denoiser has no input for one",
      file: example.input,
      fix: "Train on targets and captions, or use a model with 8 or 9 input channels.",
    });
  }
  if (!example.input && kind === 2) {
    throw new InputError({ what: "this model changes pictures: every target needs an input", file: example.target });
  }
}

function mirror<Picture extends RgbImage | Mask>({ width, height, data }: Picture, depth: number): Picture {
  const turned = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [(y * width + x) * depth, (y * width + width - 1 - x) * depth];
      for (let channel = 0; channel < depth; channel++) turned[to + channel] = data[from + channel];
    }
  }
  return { width, height, data: turned } as unknown as Picture;
}
