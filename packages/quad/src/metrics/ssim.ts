import { InputError } from "@quad-lora/base";
import { filterValid, gaussianKernel, halve, multiply } from "./filter.ts";
import { checkImagePair, type Image, type MetricChannels, metricPlanes, type Plane } from "./image.ts";
import { mean } from "./mean.ts";

const WINDOW = gaussianKernel(1.5, 5);
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

/** The exponents of the five scales, finest first (Wang, Simoncelli, Bovik 2003). They sum to 1. */
export const MSSSIM_WEIGHTS: readonly number[] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/** Which channels are compared. */
export interface SsimOptions {
  /** `"luma"` (default): BT.601 luma, as the original code. `"rgb"`: the mean of three channels, as scikit-image. */
  channels?: MetricChannels;
}

/** What {@link msssim} returns: the value with the scales it really rests on. */
export interface MsssimResult {
  /** 0..1; 1 for equal images. */
  value: number;
  /** How many scales fitted: 5 from 161 pixels on the shorter side, fewer below. */
  scales: number;
  /** The exponent of each used scale, finest first; they sum to 1. */
  weights: number[];
}

/**
 * Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004): 11x11 Gaussian window with sigma 1.5, K1 = 0.01,
 * K2 = 0.03, range 255, averaged over the windows that lie wholly inside. With `channels: "rgb"` it is scikit-image's
 * `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255)`.
 * The original's downsampling of large pictures is left to the caller.
 *
 * @returns -1..1; 1 for equal images.
 * @throws InputError when the images differ in size or a side is shorter than 11.
 */
export function ssim(a: Image, b: Image, options: SsimOptions = {}): number {
  const { first, second } = preparePlanes(a, b, options);
  return mean(first.map((plane, i) => compareStructure(plane, second[i]).ssim));
}

/**
 * Multi-scale SSIM (Wang, Simoncelli, Bovik 2003): contrast and structure at every scale, luminance at the coarsest,
 * 2x2 means between scales: `prod_s cs_s^w_s * ssim_S^w_S`. A negative mean counts as 0.
 * A picture too small for five scales uses as many as hold an 11-tap window, with the weights of those scales divided
 * by their sum: 64x64 has three. Such values compare only among pictures with the same number of scales.
 *
 * @throws InputError when the images differ in size or a side is shorter than 11.
 */
export function msssim(a: Image, b: Image, options: SsimOptions = {}): MsssimResult {
  const { first, second } = preparePlanes(a, b, options);
  const scales = countScales(a.width, a.height);
  const used = MSSSIM_WEIGHTS.slice(0, scales);
  const total = used.reduce((sum, weight) => sum + weight, 0);
  const weights = scales === MSSSIM_WEIGHTS.length ? used : used.map((weight) => weight / total);
  const values = first.map((plane, i) => {
    let [left, right] = [plane, second[i]];
    let product = 1;
    for (const [scale, weight] of weights.entries()) {
      const { ssim, contrastStructure } = compareStructure(left, right);
      product *= Math.max(scale === scales - 1 ? ssim : contrastStructure, 0) ** weight;
      if (scale < scales - 1) [left, right] = [halve(left), halve(right)];
    }
    return product;
  });
  return { value: mean(values), scales, weights };
}

function countScales(width: number, height: number): number {
  let shorter = Math.min(width, height);
  let scales = 0;
  while (scales < MSSSIM_WEIGHTS.length && shorter >= WINDOW.length) {
    scales++;
    shorter = (shorter + 1) >> 1;
  }
  return scales;
}

function preparePlanes(a: Image, b: Image, options: SsimOptions): { first: Plane[]; second: Plane[] } {
  checkImagePair(a, b);
  if (Math.min(a.width, a.height) < WINDOW.length)
    throw new InputError({
      what: "the images are too small for SSIM",
      expected: `sides of at least ${WINDOW.length}`,
      got: `${a.width}x${a.height}`,
      fix: "Use psnr for such small pictures.",
    });
  const channels = options.channels ?? "luma";
  return { first: metricPlanes(a, channels), second: metricPlanes(b, channels) };
}

function compareStructure(a: Plane, b: Plane): { ssim: number; contrastStructure: number } {
  const meanA = filterValid(a, WINDOW).data;
  const meanB = filterValid(b, WINDOW).data;
  const squareA = filterValid(multiply(a, a), WINDOW).data;
  const squareB = filterValid(multiply(b, b), WINDOW).data;
  const product = filterValid(multiply(a, b), WINDOW).data;
  let ssim = 0;
  let contrastStructure = 0;
  for (let i = 0; i < meanA.length; i++) {
    const ma = meanA[i];
    const mb = meanB[i];
    const variances = squareA[i] - ma * ma + (squareB[i] - mb * mb);
    const covariance = product[i] - ma * mb;
    const cs = (2 * covariance + C2) / (variances + C2); // (2 s_ab + C2) / (s_a^2 + s_b^2 + C2)
    const luminance = (2 * ma * mb + C1) / (ma * ma + mb * mb + C1); // (2 m_a m_b + C1) / (m_a^2 + m_b^2 + C1)
    contrastStructure += cs;
    ssim += luminance * cs;
  }
  return { ssim: ssim / meanA.length, contrastStructure: contrastStructure / meanA.length };
}
