import { InputError } from "@quad-lora/base";
import type { Image } from "./image.ts";
import {
  checkInput,
  checkInputCount,
  floatTensor,
  type MetricSession,
  type NumericTensor,
  runNetwork,
  tokenTensor,
} from "./network.ts";
import { centreSquare, resizeToPlanes } from "./resize.ts";

/** Per-channel means and deviations of CLIP's training images, for pixels in 0..1 (Radford et al. 2021). */
const CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073];
const CLIP_DEVIATION = [0.26862954, 0.26130258, 0.27577711];

/** Input size and output of a CLIP image encoder. */
export interface ImageEmbeddingOptions {
  /** Side of the square the encoder takes, in pixels. Default 224. */
  size?: number;
  /** The output with the projected embedding. Default: `image_embeds` if there is one, else the first. */
  output?: string;
}

/** Output of a CLIP text encoder. */
export interface TextEmbeddingOptions {
  /** The output with the projected embedding. Default: `text_embeds` if there is one, else the first. */
  output?: string;
}

/**
 * Embedding of an image by a CLIP image encoder: centre square, antialiased bicubic to `size`, CLIP's normalisation,
 * input `[1, 3, size, size]`, output `[1, dim]`.
 *
 * @returns the embedding, not normalised.
 * @throws InputError when the graph's input or output does not fit.
 */
export async function embedImage(
  encoder: MetricSession,
  image: Image,
  options: ImageEmbeddingOptions = {},
): Promise<Float32Array> {
  const size = options.size ?? 224;
  const [name] = checkInputCount(encoder, "image encoder", 1);
  const dims = [1, 3, size, size];
  checkInput(encoder, "image encoder", name!, ["float32"], dims);
  const pixels = resizeToPlanes(image, size, size, "bicubic", centreSquare(image)).map((value, i) => {
    const channel = Math.floor(i / (size * size));
    return (Math.min(Math.max(value, 0), 255) / 255 - CLIP_MEAN[channel]) / CLIP_DEVIATION[channel];
  });
  const output = options.output ?? preferredOutput(encoder, "image_embeds");
  return embedding(
    await runNetwork(encoder, "image encoder", { [name!]: floatTensor(pixels, dims) }, output),
    "image encoder",
  );
}

/**
 * Embedding of a text by a CLIP text encoder: one input `[1, length]` of token ids, int64 or int32, or a second named
 * `attention_mask`, which is filled with ones. The caller tokenises and pads to the encoder's length.
 *
 * @returns the embedding, not normalised.
 * @throws InputError when the graph's inputs or output do not fit.
 */
export async function embedText(
  encoder: MetricSession,
  tokenIds: readonly number[],
  options: TextEmbeddingOptions = {},
): Promise<Float32Array> {
  const hasMask = encoder.inputNames.includes("attention_mask");
  const names = checkInputCount(encoder, "text encoder", hasMask ? 2 : 1);
  if (tokenIds.length === 0 || !tokenIds.every((id) => Number.isInteger(id) && id >= 0))
    throw new InputError({
      what: "token ids must be integers of at least 0, one or more",
      where: "text encoder",
      fix: "Tokenise the prompt with the encoder's own tokenizer.",
    });
  const dims = [1, tokenIds.length];
  const feeds = Object.fromEntries(
    names.map((name) => {
      const type = checkInput(encoder, "text encoder", name, ["int64", "int32"], dims);
      return [name, tokenTensor(type, name === "attention_mask" ? tokenIds.map(() => 1) : tokenIds, dims)];
    }),
  );
  const output = options.output ?? preferredOutput(encoder, "text_embeds");
  return embedding(await runNetwork(encoder, "text encoder", feeds, output), "text encoder");
}

/**
 * CLIP score (Hessel et al. 2021) of an image's and a text's embedding: `100 max(cos, 0)`, as torchmetrics reports it;
 * the paper's own scale is this times 0.025.
 *
 * @returns 0..100
 * @throws InputError when the embeddings differ in length or one is zero.
 */
export function clipScore(image: ArrayLike<number>, text: ArrayLike<number>): number {
  return 100 * Math.max(cosineSimilarity(image, text), 0);
}

/**
 * CLIP directional similarity (Gal et al. 2021, StyleGAN-NADA): the cosine between the change from one image to the
 * other and the change from one text to the other, of embeddings normalised first. Measures whether an edit moved the
 * picture where the words moved.
 *
 * @returns -1..1
 * @throws InputError when embeddings differ in length, one is zero, or nothing changed.
 */
export function clipDirectionalSimilarity(
  imageBefore: ArrayLike<number>,
  imageAfter: ArrayLike<number>,
  textBefore: ArrayLike<number>,
  textAfter: ArrayLike<number>,
): number {
  return cosineSimilarity(change(imageBefore, imageAfter), change(textBefore, textAfter));
}

/**
 * Cosine of the angle between two vectors.
 *
 * @throws InputError when they differ in length or one is zero.
 */
export function cosineSimilarity(a: ArrayLike<number>, b: ArrayLike<number>): number {
  checkLengths(a, b);
  const [normA, normB] = [norm(a), norm(b)];
  let dot = 0;
  for (let i = 0; i < a.length; i++) dot += (a[i] / normA) * (b[i] / normB);
  return Math.min(Math.max(dot, -1), 1);
}

function change(before: ArrayLike<number>, after: ArrayLike<number>): Float64Array {
  checkLengths(before, after);
  const [normBefore, normAfter] = [norm(before), norm(after)];
  return Float64Array.from(before, (value, i) => after[i] / normAfter - value / normBefore);
}

function norm(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] ** 2;
  if (!(sum > 0) || sum === Number.POSITIVE_INFINITY)
    throw new InputError({
      what: "a direction needs a finite vector other than zero",
      got: `a squared length of ${sum}`,
      fix: "For a directional similarity, images and texts before and after must differ.",
    });
  return Math.sqrt(sum);
}

function checkLengths(a: ArrayLike<number>, b: ArrayLike<number>): void {
  if (a.length !== b.length)
    throw new InputError({
      what: "the embeddings differ in length",
      expected: String(a.length),
      got: String(b.length),
      fix: "Use image and text encoders of one CLIP model, with their projections.",
    });
}

function preferredOutput(encoder: MetricSession, name: string): string | undefined {
  return encoder.outputNames.includes(name) ? name : encoder.outputNames[0];
}

function embedding({ data, dims }: NumericTensor, network: string): Float32Array {
  if (dims.length !== 2 || dims[0] !== 1)
    throw new InputError({
      what: "the encoder does not return one embedding",
      where: network,
      expected: "[1, dim]",
      got: `[${dims.join(", ")}]`,
      fix: "Choose the pooled, projected output with the option output.",
    });
  return data;
}
