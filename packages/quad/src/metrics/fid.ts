import { InputError } from "@quad-lora/base";
import { frechetDistance } from "./frechet.ts";
import type { Image } from "./image.ts";
import { checkInput, checkInputCount, floatTensor, type MetricSession, runNetwork } from "./network.ts";
import { type Interpolation, resizeToPlanes } from "./resize.ts";

/** How pictures are brought to the feature network. */
export interface FeatureOptions {
  /** Side of the square the network takes, in pixels. Default 299 (Inception v3). */
  size?: number;
  /** How 0..255 maps to the network's input. Default `[-1, 1]`; many FID exports take `[0, 1]` or `[0, 255]`. */
  range?: readonly [number, number];
  /** Default `"bicubic"`, antialiased, as clean-fid (Parmar et al. 2022). */
  interpolation?: Interpolation;
  /** Images per run. Default 8; 1 for graphs with a fixed batch of one. */
  batchSize?: number;
  /** Which output holds the features; by default the first. */
  output?: string;
}

/** Features of a set of images. */
export interface ImageFeatures {
  /** `[images, dim]` row-major. */
  data: Float32Array;
  dim: number;
}

/**
 * Features of images by a network the caller supplies: input `[N, 3, size, size]`, output `[N, dim]` or
 * `[N, dim, 1, 1]`. Images may differ in size; each is resized to the square.
 *
 * @throws InputError when there is no image, or the graph's input or output does not fit.
 */
export async function imageFeatures(
  session: MetricSession,
  images: readonly Image[],
  options: FeatureOptions = {},
): Promise<ImageFeatures> {
  const { size = 299, range = [-1, 1], interpolation = "bicubic", batchSize = 8 } = options;
  if (images.length === 0) throw new InputError({ what: "no images to take features of", expected: "at least one" });
  if (!Number.isInteger(batchSize) || batchSize < 1)
    throw new InputError({ what: "the batch size must be a positive integer", got: String(batchSize) });
  const [name] = checkInputCount(session, "feature network", 1);
  const [low, high] = range;
  const parts: Float32Array[] = [];
  let dim = 0;
  for (let start = 0; start < images.length; start += batchSize) {
    const batch = images.slice(start, start + batchSize);
    const dims = [batch.length, 3, size, size];
    checkInput(session, "feature network", name!, ["float32"], dims);
    const pixels = new Float32Array(batch.length * 3 * size * size);
    for (const [i, image] of batch.entries())
      pixels.set(
        resizeToPlanes(image, size, size, interpolation).map((value) => low + ((high - low) * value) / 255),
        i * 3 * size * size,
      );
    const output = await runNetwork(session, "feature network", { [name!]: floatTensor(pixels, dims) }, options.output);
    dim = output.dims[1] ?? 0;
    if (output.dims[0] !== batch.length || dim === 0 || output.data.length !== batch.length * dim)
      throw new InputError({
        what: "the network does not return one feature vector per image",
        where: "feature network",
        expected: `[${batch.length}, dim] or [${batch.length}, dim, 1, 1]`,
        got: `[${output.dims.join(", ")}]`,
        fix: "Choose the pooled feature output with the option output.",
      });
    parts.push(output.data);
  }
  const data = new Float32Array(images.length * dim);
  parts.reduce((offset, part) => {
    data.set(part, offset);
    return offset + part.length;
  }, 0);
  return { data, dim };
}

/**
 * Frechet Inception Distance (Heusel et al. 2017) between two image sets by a network the caller supplies. Values
 * compare only for one network, one resizing and one number of images.
 *
 * @throws InputError as {@link imageFeatures}, and when a set has fewer than two images.
 */
export async function fid(
  session: MetricSession,
  imagesA: readonly Image[],
  imagesB: readonly Image[],
  options: FeatureOptions = {},
): Promise<number> {
  const a = await imageFeatures(session, imagesA, options);
  const b = await imageFeatures(session, imagesB, options);
  return frechetDistance(a.data, b.data, a.dim);
}
