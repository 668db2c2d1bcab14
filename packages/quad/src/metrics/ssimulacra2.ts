import { InputError } from "@quad-lora/base";
import { filterZeroPadded, halve, multiply } from "./filter.ts";
import { checkImagePair, type Image, type Plane } from "./image.ts";
import { SCORE_EXPONENT, SCORE_POLYNOMIAL, SCORE_SCALE, SSIMULACRA2_WEIGHTS } from "./ssimulacra2-weights.ts";

const SCALES = 6;
const SMALLEST_SIDE = 8;
const SSIM_C2 = 0.0009;
const BLUR_KERNEL = truncatedCosineKernel(1.5);
const OPSIN_BIAS = 0.0037930732552754493;
const OPSIN_BIAS_ROOT = Math.cbrt(OPSIN_BIAS);
const OPSIN_ABSORBANCE = [
  [0.3, 0.622, 0.078],
  [0.23, 0.692, 0.078],
  [0.24342268924547819, 0.20476744424496821, 0.5518098665095535],
] as const;
const SRGB_TO_LINEAR = Float64Array.from({ length: 256 }, (_, value) => {
  const encoded = value / 255;
  return encoded <= 0.04045 ? encoded / 12.92 : ((encoded + 0.055) / 1.055) ** 2.4;
});

type Planes = [Plane, Plane, Plane];

/** How pictures too small for all scales are weighted. */
export interface Ssimulacra2Options {
  /**
   * What to do with the weights of a picture too small for six scales (a side of 128 or less).
   * `"reference"` (default) does as the published program: weights are taken in order, so each channel's weights
   * shift by the missing scales. `"aligned"` keeps every weight with its own scale and counts missing scales as
   * equal; its values are not those of the published program.
   */
  smallImages?: "reference" | "aligned";
}

/**
 * SSIMULACRA 2.1 (Sneyers 2023, https://github.com/cloudinary/ssimulacra2): a perceptual score without a network.
 * In XYB, at up to six scales halved in linear light, it measures SSIM errors, new edges and lost edges, as means and
 * 4-norms, and weighs them to fit human ratings. Argument order matters: new edges and lost edges weigh differently.
 *
 * @returns 100 for equal images; about 90 cannot be told apart, 70 high, 50 medium, 30 low quality; can be negative.
 * @throws InputError when the images differ in size or a side is shorter than 8.
 */
export function ssimulacra2(reference: Image, distorted: Image, options: Ssimulacra2Options = {}): number {
  checkImagePair(reference, distorted);
  if (Math.min(reference.width, reference.height) < SMALLEST_SIDE)
    throw new InputError({
      what: "the images are too small for SSIMULACRA 2",
      expected: `sides of at least ${SMALLEST_SIDE}`,
      got: `${reference.width}x${reference.height}`,
      fix: "Use psnr for such small pictures.",
    });
  let linearReference = linearPlanes(reference);
  let linearDistorted = linearPlanes(distorted);
  const errors: number[][][] = []; // [scale][channel][norm * 3 + map]
  for (let scale = 0; scale < SCALES; scale++) {
    // As in the published program the limit holds for the size before halving, so the coarsest scale may be 4 pixels.
    if (Math.min(linearReference[0].width, linearReference[0].height) < SMALLEST_SIDE) break;
    if (scale > 0) {
      linearReference = linearReference.map(halve) as Planes;
      linearDistorted = linearDistorted.map(halve) as Planes;
    }
    const original = toPositiveXyb(linearReference);
    const changed = toPositiveXyb(linearDistorted);
    errors.push(original.map((plane, channel) => channelErrors(plane, changed[channel])));
  }
  return scoreOf(errors, options.smallImages ?? "reference");
}

function scoreOf(errors: number[][][], smallImages: "reference" | "aligned"): number {
  const stride = smallImages === "aligned" ? SCALES : errors.length;
  let sum = 0;
  for (const [scale, channels] of errors.entries())
    for (const [channel, values] of channels.entries())
      for (const [i, value] of values.entries()) sum += SSIMULACRA2_WEIGHTS[(channel * stride + scale) * 6 + i] * value;
  const x = sum * SCORE_SCALE;
  const [linear, square, cube] = SCORE_POLYNOMIAL;
  const distance = x * (linear + x * (square + x * cube));
  return distance > 0 ? 100 - 10 * distance ** SCORE_EXPONENT : 100;
}

function linearPlanes(image: Image): Planes {
  const { width, height, data } = image;
  const channel = (offset: number): Plane => {
    const values = new Float64Array(width * height);
    for (let i = 0; i < values.length; i++) values[i] = SRGB_TO_LINEAR[data[3 * i + offset]];
    return { width, height, data: values };
  };
  return [channel(0), channel(1), channel(2)];
}

/**
 * Linear RGB to XYB of JPEG XL (cube roots of cone absorbances, ISO/IEC 18181-1), then moved into about 0..1:
 * `14 X + 0.42`, `Y + 0.01`, `B - Y + 0.55`.
 */
function toPositiveXyb([red, green, blue]: Planes): Planes {
  const { width, height } = red;
  const [long, medium, short] = OPSIN_ABSORBANCE;
  const planes = [0, 1, 2].map(() => ({ width, height, data: new Float64Array(width * height) })) as Planes;
  const [outX, outY, outB] = planes;
  for (let i = 0; i < width * height; i++) {
    const r = red.data[i];
    const g = green.data[i];
    const b = blue.data[i];
    const l = Math.cbrt(long[0] * r + long[1] * g + long[2] * b + OPSIN_BIAS) - OPSIN_BIAS_ROOT;
    const m = Math.cbrt(medium[0] * r + medium[1] * g + medium[2] * b + OPSIN_BIAS) - OPSIN_BIAS_ROOT;
    const s = Math.cbrt(short[0] * r + short[1] * g + short[2] * b + OPSIN_BIAS) - OPSIN_BIAS_ROOT;
    const luma = (l + m) / 2;
    outX.data[i] = 7 * (l - m) + 0.42;
    outY.data[i] = luma + 0.01;
    outB.data[i] = s - luma + 0.55;
  }
  return planes;
}

/** Means, then 4-norms, of the maps: SSIM error, artefact (new edges), lost detail. */
function channelErrors(original: Plane, changed: Plane): number[] {
  const blur = (plane: Plane) => filterZeroPadded(plane, BLUR_KERNEL).data;
  const mean1 = blur(original);
  const mean2 = blur(changed);
  const square1 = blur(multiply(original, original));
  const square2 = blur(multiply(changed, changed));
  const product = blur(multiply(original, changed));
  const sums = [0, 0, 0, 0, 0, 0];
  for (let i = 0; i < mean1.length; i++) {
    const m1 = mean1[i];
    const m2 = mean2[i];
    const covariance = 2 * (product[i] - m1 * m2) + SSIM_C2;
    const variances = square1[i] - m1 * m1 + (square2[i] - m2 * m2) + SSIM_C2;
    const error = Math.max(1 - ((1 - (m1 - m2) ** 2) * covariance) / variances, 0);
    const edge1 = Math.abs(original.data[i] - m1);
    const edge2 = Math.abs(changed.data[i] - m2);
    const change = (1 + edge2) / (1 + edge1) - 1;
    const artefact = Math.max(change, 0);
    const lost = Math.max(-change, 0);
    sums[0] += error;
    sums[1] += artefact;
    sums[2] += lost;
    sums[3] += error ** 4;
    sums[4] += artefact ** 4;
    sums[5] += lost ** 4;
  }
  return sums.map((sum, i) => (i < 3 ? sum / mean1.length : (sum / mean1.length) ** 0.25));
}

/**
 * The metric's blur: Charalampidis 2016, "Recursive Implementation of the Gaussian Filter Using Truncated Cosine
 * Functions", order 3. The recursion's impulse response is `h[n] = sum_k beta_k cos(k pi n / 2N)`, k = 1, 3, 5, and
 * vanishes from |n| = N on; with N = 5 that is nine taps, so a plain convolution is exact and free of drift.
 */
function truncatedCosineKernel(sigma: number): Float64Array {
  const radius = Math.round(3.2795 * sigma + 0.2546); // (57)
  const omega = [1, 3, 5].map((k) => (k * Math.PI) / (2 * radius));
  const p = omega.map((w, i) => (i === 1 ? -1 : 1) / Math.tan(w / 2)); // (37)
  const r = omega.map((w, i) => ((i === 1 ? -1 : 1) * p[i] ** 2) / Math.sin(w)); // (44)
  const rho = omega.map((w) => Math.exp(-0.5 * (sigma * w) ** 2) / radius); // (50)
  // The cross product of p and r spans what both sum constraints leave free; (52) to (56) match rho along it.
  const free = [p[1] * r[2] - r[1] * p[2], p[2] * r[0] - r[2] * p[0], p[0] * r[1] - r[0] * p[1]];
  const alongFree = free.reduce((sum, value, i) => sum + value * rho[i], 0);
  const beta = solve3([p, r, free], [1, radius ** 2 - sigma ** 2, alongFree]); // sum 1, variance sigma^2
  return Float64Array.from({ length: 2 * radius - 1 }, (_, i) =>
    omega.reduce((sum, w, k) => sum + beta[k] * Math.cos(w * (i - radius + 1)), 0),
  );
}

/** Cramer's rule for three equations. */
function solve3(rows: number[][], right: number[]): number[] {
  const determinant = (m: number[][]) =>
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
    m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
    m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
  const whole = determinant(rows);
  return [0, 1, 2].map(
    (column) => determinant(rows.map((row, i) => row.map((value, j) => (j === column ? right[i] : value)))) / whole,
  );
}
