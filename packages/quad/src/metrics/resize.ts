import { InputError } from "@quad-lora/base";
import { checkImage, type Image } from "./image.ts";

/** Which interpolation kernel resizes pictures for a network; both widen when shrinking, as Pillow's. */
export type Interpolation = "bilinear" | "bicubic";

/** Where to take the result from: offset and size in source pixels, fractions allowed. */
export interface SourceBox {
  left: number;
  top: number;
  width: number;
  height: number;
}

interface Taps {
  first: number;
  weights: Float64Array;
}

/**
 * Antialiased resampling as Pillow's `resize` in floating point: a triangle or Keys' cubic (a = -1/2), stretched by
 * the reduction factor, weights normalised over the pixels inside the picture. Results are neither rounded nor
 * clamped, so bicubic may overshoot 0..255.
 *
 * @returns `[3, height, width]`, 0..255.
 * @throws InputError when the image is malformed or the size is not a positive integer.
 */
export function resizeToPlanes(
  image: Image,
  width: number,
  height: number,
  interpolation: Interpolation,
  box: SourceBox = { left: 0, top: 0, width: image.width, height: image.height },
): Float32Array {
  checkImage(image, "image");
  if (!Number.isInteger(width) || !Number.isInteger(height) || width < 1 || height < 1)
    throw new InputError({
      what: "an image can only be resized to positive integer sides",
      got: `${width}x${height}`,
    });
  const columns = tapsOf(image.width, box.left, box.width, width, interpolation);
  const rows = tapsOf(image.height, box.top, box.height, height, interpolation);
  const out = new Float32Array(3 * height * width);
  const narrow = new Float64Array(image.height * width);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < image.height; y++)
      for (let x = 0; x < width; x++) {
        const { first, weights } = columns[x];
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * image.data[(y * image.width + first + k) * 3 + c];
        narrow[y * width + x] = sum;
      }
    for (let y = 0; y < height; y++) {
      const { first, weights } = rows[y];
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * narrow[(first + k) * width + x];
        out[(c * height + y) * width + x] = sum;
      }
    }
  }
  return out;
}

/**
 * The largest centred square of a picture. Resizing it is resizing the shorter side, then cropping the centre, but for
 * the rounding of the crop's offset.
 */
export function centreSquare(image: Image): SourceBox {
  const side = Math.min(image.width, image.height);
  return { left: (image.width - side) / 2, top: (image.height - side) / 2, width: side, height: side };
}

function tapsOf(source: number, start: number, length: number, count: number, interpolation: Interpolation): Taps[] {
  const ratio = length / count;
  const stretch = Math.max(ratio, 1);
  const kernel = interpolation === "bilinear" ? triangle : cubic;
  const support = (interpolation === "bilinear" ? 1 : 2) * stretch;
  return Array.from({ length: count }, (_, i) => {
    const centre = start + (i + 0.5) * ratio;
    const first = Math.max(Math.floor(centre - support + 0.5), 0);
    const end = Math.min(Math.floor(centre + support + 0.5), source);
    const weights = Float64Array.from({ length: end - first }, (_, k) => kernel((first + k + 0.5 - centre) / stretch));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

function triangle(x: number): number {
  return Math.max(1 - Math.abs(x), 0);
}

function cubic(x: number): number {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}
