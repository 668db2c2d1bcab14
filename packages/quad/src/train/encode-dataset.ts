import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { loadTokenizer, type Mask, type RgbImage, resizeNearest } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { z } from "zod";
import { folderFiles } from "../files/folder-files.ts";
import { readImage, readMask } from "../files/images.ts";
import { parseJsonFile } from "../files/json.ts";
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

const vaeConfigSchema = z.looseObject({
  scaling_factor: z.number().positive().default(0.18215),
  latent_channels: z.int().positive().default(4),
});

const options: ort.InferenceSession.SessionOptions = {
  logSeverityLevel: 3,
  intraOpNumThreads: 2,
  interOpNumThreads: 1,
};

/**
 * Encodes pictures and captions once, in the way the runtime does when it draws: conditioning channels behind the latents
 * are nothing (4 input channels), the input's unscaled latents (8: InstructPix2Pix) or mask and latents (9: inpainting;
 * mask all ones with the input's latents for image-conditioned tasks, with those of mid-grey for text-to-image).
 * @throws InputError for pictures that cannot be read, or that the denoiser has no input for
 */
export async function encodeDataset(
  modelFolder: string,
  examples: readonly TrainingExample[],
  { channels, size, flip, stage = "encoding", signal, onProgress }: EncodeOptions,
): Promise<EncodedDataset> {
  const encoder = await LatentEncoder.open(modelFolder);
  try {
    const { latentChannels } = encoder;
    const encoded: EncodedExample[] = [];
    const grey = await encoder.encode(new Float32Array(3 * size.width * size.height), size);
    const [height, width] = [grey.height, grey.width];
    const plane = height * width;
    const total = examples.length;
    for (const [index, example] of examples.entries()) {
      signal?.throwIfAborted();
      const target = await readImage(example.target, size);
      const input = example.input ? await readImage(example.input, size) : null;
      const mask = example.mask ? await readMask(example.mask, size) : null;
      refuseUnusable(example, channels, latentChannels);
      for (const mirrored of flip ? [false, true] : [false]) {
        const turn = <Picture extends RgbImage | Mask>(picture: Picture, depth: number): Picture =>
          mirrored ? mirror(picture, depth) : picture;
        const shown = input ?? (mask ? target : null);
        const seen = shown && imagePlanes(turn(shown, 3), mask && turn(mask, 1));
        const latents = (await encoder.encode(imagePlanes(turn(target, 3), null), size)).values;
        const condition = seen ? (await encoder.encode(seen, size)).values : grey.values;
        encoded.push({
          latents,
          conditioning: conditioningOf(channels, latentChannels, condition, encoder.scale, plane, () =>
            mask ? maskPlane(turn(mask, 1), width, height) : new Float32Array(plane).fill(1),
          ),
          caption: example.caption,
        });
      }
      onProgress?.(stage, index + 1, total);
    }
    const captions = ["", ...encoded.map(({ caption }) => caption)];
    const { texts, tokens, width: textWidth } = await encodeTexts(modelFolder, [...new Set(captions)]);
    return { examples: encoded, texts, latentChannels, height, width, tokens, textWidth };
  } finally {
    await encoder.release();
  }
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

function conditioningOf(
  channels: number,
  latentChannels: number,
  latents: Float32Array,
  scale: number,
  plane: number,
  mask: () => Float32Array,
): Float32Array {
  if (channels === latentChannels) return new Float32Array(0);
  // InstructPix2Pix was trained on unscaled latents.
  if (channels === 2 * latentChannels) return latents.map((value) => value / scale);
  const result = new Float32Array(plane + latents.length);
  result.set(mask());
  result.set(latents, plane);
  return result;
}

/** `[3, height, width]` in [-1, 1]; painted pixels are mid-grey. */
function imagePlanes({ width, height, data }: RgbImage, mask: Mask | null): Float32Array {
  const size = width * height;
  const planes = new Float32Array(3 * size);
  for (let pixel = 0; pixel < size; pixel++) {
    if (mask && mask.data[pixel] >= 128) continue;
    for (let channel = 0; channel < 3; channel++)
      planes[channel * size + pixel] = data[pixel * 3 + channel] / 127.5 - 1;
  }
  return planes;
}

function maskPlane(mask: Mask, width: number, height: number): Float32Array {
  return Float32Array.from(resizeNearest(mask.data, mask, { width, height }), (value) => (value >= 128 ? 1 : 0));
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

class LatentEncoder {
  readonly latentChannels: number;
  readonly scale: number;
  readonly #session: ort.InferenceSession;
  readonly #file: string;

  private constructor(session: ort.InferenceSession, file: string, config: z.infer<typeof vaeConfigSchema>) {
    this.#session = session;
    this.#file = file;
    this.latentChannels = config.latent_channels;
    this.scale = config.scaling_factor;
  }

  static async open(folder: string): Promise<LatentEncoder> {
    const file = join(folder, "vae_encoder", "model.onnx");
    const session = await openGraph(file);
    const config = ["vae_encoder", "vae_decoder"].map((name) => join(folder, name, "config.json")).find(existsSync);
    const text = config ? await readFile(config, "utf8") : "{}";
    return new LatentEncoder(session, file, parseJsonFile(config ?? file, text, vaeConfigSchema));
  }

  /** The mean of the encoding times the scaling factor. */
  async encode(planes: Float32Array, size: { width: number; height: number }) {
    const tensor = new ort.Tensor("float32", planes, [1, 3, size.height, size.width]);
    const outputs = await this.#session.run({ [this.#session.inputNames[0]]: tensor });
    const output = outputs.latent_parameters ?? outputs.latent_sample ?? Object.values(outputs)[0];
    const [, channels, height, width] = output.dims;
    if (channels !== this.latentChannels && channels !== 2 * this.latentChannels) {
      throw new InputError({
        what: "the encoder's output is neither latents nor mean and log-variance",
        file: this.#file,
        expected: `${this.latentChannels} or ${2 * this.latentChannels} channels`,
        got: String(channels),
      });
    }
    const mean = (output.data as Float32Array).slice(0, this.latentChannels * height * width);
    return { values: mean.map((value) => value * this.scale), height, width };
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}

async function encodeTexts(folder: string, captions: readonly string[]) {
  const tokenizer = await loadTokenizer(folderFiles(folder), 77);
  const file = join(folder, "text_encoder", "model.onnx");
  const session = await openGraph(file);
  const texts = new Map<string, Float32Array>();
  let [tokens, width] = [0, 0];
  try {
    const port = session.inputMetadata.find(({ name }) => name === "input_ids");
    for (const caption of captions) {
      const ids = tokenizer.encode(caption);
      const data = port?.isTensor && port.type === "int32" ? Int32Array.from(ids) : BigInt64Array.from(ids, BigInt);
      const type = data instanceof Int32Array ? "int32" : "int64";
      const input = new ort.Tensor(type as "int64", data as BigInt64Array, [1, ids.length]);
      const outputs = await session.run({ input_ids: input });
      const output = outputs.last_hidden_state ?? Object.values(outputs).find(({ dims }) => dims.length === 3);
      if (!output) throw new InputError({ what: "the text encoder gives no hidden states", file });
      [, tokens, width] = output.dims;
      texts.set(caption, (output.data as Float32Array).slice());
    }
  } finally {
    await session.release();
  }
  return { texts, tokens, width };
}

async function openGraph(file: string): Promise<ort.InferenceSession> {
  if (!existsSync(file)) {
    throw new InputError({
      what: "is missing",
      file,
      fix: "Training needs the model's encoders: export them to ONNX too.",
    });
  }
  const session = await ort.InferenceSession.create(file, options);
  const [input] = session.inputMetadata;
  if (!input?.isTensor || input.type === "float16") {
    await session.release();
    throw new InputError({ what: "training needs float32 graphs", file, fix: "Export the model in full precision." });
  }
  return session;
}
