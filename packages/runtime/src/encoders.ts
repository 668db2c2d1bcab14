import { InputError } from "@quad-lora/base";
import type { InferenceSession, Tensor } from "onnxruntime-common";
import { Autoencoder } from "./autoencoder.ts";
import type { PictureSize } from "./default-size.ts";
import type { Conditions, EncoderDefinition, Family, PromptEncoding, RowInput } from "./families/family.ts";
import { readModelIndex } from "./families/index.ts";
import { channelsBehind, imageUseOf } from "./families/unet.ts";
import { type FolderFiles, readRequired } from "./files.ts";
import { checkImage, type Mask, type RgbImage } from "./images.ts";
import { Component, type OrtModule } from "./ort.ts";
import { parseSchedulerConfigText } from "./schedulers/config.ts";
import { TextEncoder } from "./text-encoder.ts";
import { loadTokenizer } from "./tokenizer.ts";

/** A text encoder with the tensors of its adapter inputs; the key says which adapters those are. */
export interface BoundEncoder {
  name: string;
  encoder: TextEncoder;
  adapters: Record<string, Tensor>;
  key: string;
}

/** Options of {@link openEncoders}. */
export interface EncodersOptions {
  ort: OrtModule;
  /** A model folder without adapter inputs. */
  files: FolderFiles;
  sessionOptions?: InferenceSession.SessionOptions;
}

/**
 * Opens what of a model folder makes a denoiser's inputs of prompts and pictures, and nothing else: for training and for
 * metrics. Graphs are opened when they are first needed.
 *
 * @throws InputError when the pipeline's class is not supported
 */
export async function openEncoders({ ort, files, sessionOptions }: EncodersOptions): Promise<Encoders> {
  const { index, candidates } = await readModelIndex(files);
  // Families that differ in the denoiser's inputs alone encode alike.
  const [family] = candidates;
  const open = (name: string) => Component.open(ort, files, name, sessionOptions);
  const openTexts = async () =>
    openTextEncoders({ ort, files, open, family, index, schedulerConfig: await readSchedulerConfig(files) });
  const autoencoder = await Autoencoder.openEncoder(ort, files, () => sessionOptions);
  return new Encoders(family, openTexts, autoencoder);
}

/** Text encoders and the picture encoder of a model folder. Made by {@link openEncoders}. */
export class Encoders {
  readonly family: Family;
  readonly #openTexts: () => Promise<ReadonlyMap<string, TextEncoder>>;
  readonly #autoencoder: Autoencoder;
  #texts: Promise<ReadonlyMap<string, TextEncoder>> | undefined;

  constructor(family: Family, openTexts: () => Promise<ReadonlyMap<string, TextEncoder>>, autoencoder: Autoencoder) {
    this.family = family;
    this.#openTexts = openTexts;
    this.#autoencoder = autoencoder;
  }

  /** As `Pipeline.encodePrompt`. */
  async encodePrompt(prompt: string): Promise<Conditions> {
    const texts = await (this.#texts ??= this.#openTexts());
    const bound = [...texts].map(([name, encoder]) => ({ name, encoder, adapters: {}, key: "" }));
    return encodePrompt(this.family, bound, prompt, undefined);
  }

  /** As `Pipeline.encodeImage`. */
  async encodeImage(image: RgbImage, mask?: Mask): Promise<EncodedImage> {
    return encodeImage(this.#autoencoder, image, mask);
  }

  get latentChannels(): number {
    return this.#autoencoder.latentChannels;
  }

  /**
   * What a UNet sees behind the latents, `[channels - latent channels, height, width]`: nothing; an image's unscaled latents
   * (InstructPix2Pix); or a mask, all ones where there is none, and the latents of what it leaves of the image, of mid-grey
   * where there is no image (inpainting).
   *
   * @param channels - of the UNet's input
   * @param size - in pixels
   */
  async channelsBehind(
    channels: number,
    { width, height }: PictureSize,
    image?: RgbImage,
    mask?: Mask,
  ): Promise<Float32Array> {
    const autoencoder = this.#autoencoder;
    const imageUse = imageUseOf(channels, autoencoder.latentChannels) ?? "start";
    const imageLatents = () => autoencoder.encode(image!);
    const drawing = { imageUse, autoencoder, image, mask, width, height, imageLatents };
    return (await channelsBehind(drawing)) ?? new Float32Array(0);
  }

  /** Frees all sessions. */
  async dispose(): Promise<void> {
    const texts = await this.#texts?.catch(() => undefined);
    for (const encoder of texts?.values() ?? []) await encoder.component.release();
    await this.#autoencoder.release();
  }
}

/** Scaled latents, `[latent channels, height / factor, width / factor]`. */
export interface EncodedImage extends RowInput {
  readonly values: Float32Array;
}

/** @throws InputError when the picture or mask holds another number of bytes than its size says */
export async function encodeImage(autoencoder: Autoencoder, image: RgbImage, mask?: Mask): Promise<EncodedImage> {
  checkImage("image", image, 3);
  if (mask) checkImage("mask", mask, 1);
  const { factor } = autoencoder;
  const values = await autoencoder.encode(image, mask);
  const [height, width] = [image.height / factor, image.width / factor];
  return { dims: [values.length / (height * width), height, width], values };
}

/**
 * The inputs that a prompt makes.
 *
 * @param textWidth - width of the denoiser's text input, where the graph fixes it
 * @throws InputError when there is no encoder
 */
export async function encodePrompt(
  family: Family,
  encoders: readonly BoundEncoder[],
  prompt: string,
  textWidth: number | undefined,
): Promise<Conditions> {
  if (encoders.length === 0) {
    throw new InputError({
      what: "this folder has no text encoder",
      fix: "Give what the prompts are encoded to in the option conditions, or export the text encoder to ONNX.",
    });
  }
  const texts = new Map<string, PromptEncoding>();
  for (const { name, encoder, adapters, key } of encoders) {
    texts.set(name, await encoder.encode(prompt, adapters, key));
  }
  return family.encodePrompt(texts, textWidth);
}

/** The content of `scheduler/scheduler_config.json`. */
export async function readSchedulerConfig(files: FolderFiles): Promise<Record<string, unknown>> {
  const path = "scheduler/scheduler_config.json";
  const text = new TextDecoder().decode(await readRequired(files, path));
  return parseSchedulerConfigText(text, files.describe(path)) as Record<string, unknown>;
}

interface TextEncodersOptions {
  ort: OrtModule;
  files: FolderFiles;
  open: (name: string) => Promise<Component>;
  family: Family;
  /** Content of `model_index.json`. */
  index: Readonly<Record<string, unknown>>;
  schedulerConfig: Readonly<Record<string, unknown>>;
}

/**
 * The family's text encoders: all but the optional ones that the folder lacks, or none where it does without any.
 *
 * @throws InputError when it has some of those that are needed together (Stable Diffusion XL's refiner has one of two)
 */
export async function openTextEncoders(options: TextEncodersOptions): Promise<Map<string, TextEncoder>> {
  const { files, open, family, index } = options;
  const needed = family.encoders.filter(({ optional }) => !optional);
  const left = needed.find(({ component }) => isLeftOut(index, component));
  if (left && !needed.every(({ component }) => isLeftOut(index, component))) {
    throw new InputError({
      what: `${family.name} needs this text encoder beside the others`,
      file: files.describe("model_index.json"),
      where: left.component,
      got: "null",
      fix: "Use a folder with all of them; a refiner is not supported.",
    });
  }
  const encoders = new Map<string, TextEncoder>();
  for (const definition of family.encoders) {
    const { component, optional } = definition;
    if (isLeftOut(index, component) || (optional && !(await files.exists(`${component}/model.onnx`)))) continue;
    encoders.set(component, await openTextEncoder(options, await open(component), definition));
  }
  return encoders;
}

/** diffusers writes `[null, null]` for a part that a pipeline does without. */
function isLeftOut(index: Readonly<Record<string, unknown>>, component: string): boolean {
  const entry = index[component];
  return Array.isArray(entry) && entry.every((part) => part === null);
}

async function openTextEncoder(
  { ort, files, schedulerConfig }: TextEncodersOptions,
  graph: Component,
  definition: EncoderDefinition,
): Promise<TextEncoder> {
  const [, fixed] = graph.input("input_ids").shape;
  const own = definition.tokens?.(schedulerConfig);
  const tokenizer = await loadTokenizer(files, typeof fixed === "number" ? fixed : 77, {
    folder: definition.tokenizer,
    tokens: own !== undefined && typeof fixed === "number" ? fixed : own,
  });
  return new TextEncoder(ort, graph, tokenizer, definition);
}
