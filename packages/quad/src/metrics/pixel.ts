import { checkImagePair, type Image } from "./image.ts";

/**
 * Peak signal-to-noise ratio in dB over all RGB samples: `10 log10(255^2 / MSE)`. Equal images give Infinity.
 *
 * @throws InputError when the images differ in size.
 */
export function psnr(a: Image, b: Image): number {
  checkImagePair(a, b);
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) {
    const difference = a.data[i] - b.data[i];
    sum += difference * difference;
  }
  return sum === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10((255 * 255 * a.data.length) / sum);
}

/**
 * Mean absolute difference over all RGB samples, in 8-bit steps (0..255).
 *
 * @throws InputError when the images differ in size.
 */
export function meanAbsoluteError(a: Image, b: Image): number {
  checkImagePair(a, b);
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) sum += Math.abs(a.data[i] - b.data[i]);
  return sum / a.data.length;
}
