import type { Plane } from "./image.ts";

/** Normalised one-dimensional Gaussian with `2 * radius + 1` taps. */
export function gaussianKernel(sigma: number, radius: number): Float64Array {
  const kernel = new Float64Array(2 * radius + 1);
  let sum = 0;
  for (let i = -radius; i <= radius; i++) sum += kernel[i + radius] = Math.exp(-(i * i) / (2 * sigma * sigma));
  return kernel.map((tap) => tap / sum);
}

/**
 * Separable filter with one symmetric odd-length kernel, only where the whole window lies inside:
 * `[height, width]` becomes `[height - taps + 1, width - taps + 1]`.
 */
export function filterValid(plane: Plane, kernel: Float64Array): Plane {
  const { width, height, data } = plane;
  const radius = (kernel.length - 1) / 2;
  const outWidth = width - 2 * radius;
  const outHeight = height - 2 * radius;
  const rows = new Float64Array(outWidth * height);
  const centre = kernel[radius];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++) {
      const middle = y * width + x + radius;
      let sum = centre * data[middle];
      for (let k = 1; k <= radius; k++) sum += kernel[radius + k] * (data[middle - k] + data[middle + k]);
      rows[y * outWidth + x] = sum;
    }
  }
  const out = new Float64Array(outWidth * outHeight);
  for (let y = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++) {
      const middle = (y + radius) * outWidth + x;
      let sum = centre * rows[middle];
      for (let k = 1; k <= radius; k++)
        sum += kernel[radius + k] * (rows[middle - k * outWidth] + rows[middle + k * outWidth]);
      out[y * outWidth + x] = sum;
    }
  }
  return { width: outWidth, height: outHeight, data: out };
}

/** Separable filter with one symmetric odd-length kernel, samples outside the plane counting as zero; same size. */
export function filterZeroPadded(plane: Plane, kernel: Float64Array): Plane {
  const { width, height, data } = plane;
  const radius = (kernel.length - 1) / 2;
  const padWidth = width + 2 * radius;
  const padded = new Float64Array(padWidth * (height + 2 * radius));
  for (let y = 0; y < height; y++)
    padded.set(data.subarray(y * width, (y + 1) * width), (y + radius) * padWidth + radius);
  return filterValid({ width: padWidth, height: height + 2 * radius, data: padded }, kernel);
}

/** Half the size, rounded up: means of 2x2 blocks; an odd last row or column is repeated. */
export function halve(plane: Plane): Plane {
  const { width, height, data } = plane;
  const outWidth = (width + 1) >> 1;
  const outHeight = (height + 1) >> 1;
  const out = new Float64Array(outWidth * outHeight);
  for (let y = 0; y < outHeight; y++) {
    const top = 2 * y * width;
    const bottom = Math.min(2 * y + 1, height - 1) * width;
    for (let x = 0; x < outWidth; x++) {
      const left = 2 * x;
      const right = Math.min(left + 1, width - 1);
      out[y * outWidth + x] = (data[top + left] + data[top + right] + data[bottom + left] + data[bottom + right]) / 4;
    }
  }
  return { width: outWidth, height: outHeight, data: out };
}

/** The product of two planes of one size, sample by sample. */
export function multiply(a: Plane, b: Plane): Plane {
  const data = new Float64Array(a.data.length);
  for (let i = 0; i < data.length; i++) data[i] = a.data[i] * b.data[i];
  return { width: a.width, height: a.height, data };
}
