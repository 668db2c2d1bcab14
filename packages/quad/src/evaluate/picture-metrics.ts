import {
  clipDirectionalSimilarity,
  clipScore,
  cosineSimilarity,
  embedImage,
  embedText,
  frechetDistance,
  type Image,
  imageFeatures,
  lpips,
  msssim,
  psnr,
  ssim,
  ssimulacra2,
} from "../metrics/index.ts";
import { mean } from "../metrics/mean.ts";
import { equalPsnr, lessIsBetter, type PictureMetrics, type ResultSummary } from "../records/evaluation.ts";
import type { MetricNetworks } from "./networks.ts";
import type { VaeFeatures } from "./vae-features.ts";

/** One case's words and pictures, as far as metrics look at them. */
export interface MetricCase {
  prompt: string;
  /** What the input shows, for the directional similarity. */
  sourcePrompt?: string;
  /** The task's input picture, in the size of the result. */
  input?: Image;
}

/** Compares a picture with its full-precision counterpart. */
export async function comparePictures(
  reference: Image,
  picture: Image,
  { prompt, sourcePrompt, input }: MetricCase,
  networks: MetricNetworks,
): Promise<PictureMetrics> {
  const metrics: PictureMetrics = {
    psnr: Math.min(psnr(reference, picture), equalPsnr),
    ssim: ssim(reference, picture),
    msssim: msssim(reference, picture).value,
    ssimulacra2: ssimulacra2(reference, picture),
  };
  if (networks.lpips) metrics.lpips = await lpips(networks.lpips, reference, picture);
  if (!networks.clipImage) return metrics;
  const { session, size } = networks.clipImage;
  const embed = (image: Image) => embedImage(session, image, { size });
  const own = await embed(picture);
  metrics.clipSimilarity = cosineSimilarity(own, await embed(reference));
  if (!networks.clipText) return metrics;
  const { session: textTower, tokenizer } = networks.clipText;
  const embedWords = (text: string) => embedText(textTower, tokenizer.encode(text));
  metrics.clipScore = clipScore(own, await embedWords(prompt));
  if (input && sourcePrompt !== undefined) {
    const words = [await embedWords(sourcePrompt), await embedWords(prompt)] as const;
    metrics.clipDirection = clipDirectionalSimilarity(await embed(input), own, ...words);
  }
  return metrics;
}

/**
 * What a task's pictures come to, with the distances between the two sets of pictures.
 *
 * @param metrics - by picture
 */
export async function summarize(
  reference: readonly Image[],
  pictures: readonly Image[],
  metrics: readonly PictureMetrics[],
  networks: MetricNetworks,
  vae: VaeFeatures,
): Promise<ResultSummary> {
  const summary: ResultSummary = { pictures: pictures.length, metrics: {}, frechetVae: null };
  const names = Object.keys(metrics[0] ?? {}) as (keyof PictureMetrics)[];
  for (const name of names) {
    // A directional similarity exists only for the cases that say what their input shows.
    const values = metrics.map((entry) => entry[name]).filter((value) => value !== undefined);
    const worst = lessIsBetter.has(name) ? Math.max(...values) : Math.min(...values);
    summary.metrics[name] = { mean: mean(values), worst };
  }
  if (pictures.length < 2) return summary;
  const [a, b] = [await vae.of(reference), await vae.of(pictures)];
  summary.frechetVae = frechetDistance(a.data, b.data, a.dim);
  if (networks.inception) {
    const { session, ...options } = networks.inception;
    const features = (images: readonly Image[]) => imageFeatures(session, images, options);
    const [first, second] = [await features(reference), await features(pictures)];
    summary.fid = frechetDistance(first.data, second.data, first.dim);
  }
  return summary;
}
