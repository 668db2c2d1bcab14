/** Choice of quantization parameters: from a range, or from the values of a weight. */
import { InputError } from "@quad/onnx";
import { type BitWidth, type Encoding, entryCount, forEachRun, type Grid, gridLimits, middleOf } from "./grid.ts";

export { type Codes, clippedShare, dequantize, fakeQuantize, pack4, quantize, unpack4 } from "./codes.ts";
export { type BitWidth, type Encoding, entryCount, type Grid, gridLimits } from "./grid.ts";

/** Below the smallest normal float32, runtimes that flush subnormals would divide by zero. */
const smallestScale = 2 ** -126;
const largestFloat32 = (2 - 2 ** -23) * 2 ** 127;

/**
 * The per-tensor encoding whose grid spans `[min, max]`, widened to contain 0. Zero is exactly on the grid, and every
 * value of the range is reproduced to within half a step. The range `[0, 0]` gets scale 1.
 * @throws InputError if `min` or `max` is not finite in float32, or `min > max`
 */
export function encodingFromRange(min: number, max: number, grid: Grid): Encoding {
  if (!(Math.abs(min) <= largestFloat32 && Math.abs(max) <= largestFloat32 && min <= max))
    throw new InputError({
      what: "no quantization grid spans this range",
      expected: "finite numbers, min <= max",
      got: `min ${min}, max ${max}`,
      fix: "Check that the model's activations and weights are finite",
    });
  const { bits, signed, symmetric } = grid;
  const { low, high } = gridLimits(grid);
  const bottom = Math.min(min, 0);
  const top = Math.max(max, 0);
  if (symmetric) {
    const middle = middleOf(grid);
    const scale = scaleFrom(Math.max(-bottom, top) / (high - middle));
    return { bits, signed, symmetric, scale: Float32Array.of(scale), zeroPoint: Int32Array.of(middle) };
  }
  const scale = scaleFrom(top / (high - low) - bottom / (high - low));
  const zero = Math.min(high, Math.max(low, Math.round(low - bottom / scale)));
  return { bits, signed, symmetric, scale: Float32Array.of(scale), zeroPoint: Int32Array.of(zero) };
}

function scaleFrom(step: number): number {
  return step === 0 ? 1 : Math.max(Math.fround(step), smallestScale);
}

/** The smallest and largest value a per-tensor encoding's grid holds, or those of one of its entries. */
export function encodingRange(encoding: Encoding, entry = 0): { min: number; max: number } {
  const { low, high } = gridLimits(encoding);
  const zero = encoding.zeroPoint[entry];
  return { min: (low - zero) * encoding.scale[entry], max: (high - zero) * encoding.scale[entry] };
}

export interface WeightEncodingOptions {
  bits: BitWidth;
  /** Axis with one scale per index, or along which blocks lie; null for one scale for the whole tensor. */
  axis: number | null;
  /** Elements along `axis` that share a scale, for per-block encodings. */
  blockSize?: number;
  /** Scale from the largest magnitude, or the one with the least squared error, which may clip. */
  method: "min-max" | "mse";
}

/**
 * Symmetric signed encoding of a weight.
 * @param values - row-major, shape `dims`
 * @throws InputError if a value is not finite
 */
export function weightEncoding(
  values: Float32Array,
  dims: readonly number[],
  options: WeightEncodingOptions,
): Encoding {
  const { bits, blockSize, method } = options;
  const axis = options.axis ?? undefined;
  const granularity = { ...(axis !== undefined ? { axis, ...(blockSize !== undefined ? { blockSize } : {}) } : {}) };
  const grid: Grid = { bits, signed: true, symmetric: true };
  const peaks = new Float64Array(entryCount(dims, axis, blockSize));
  forEachRun(dims, granularity, (start, end, entry, step) => {
    for (let i = start, e = entry; i < end; i++, e += step) {
      const magnitude = Math.abs(values[i]);
      if (!Number.isFinite(magnitude)) throw notFinite(values[i], i, dims);
      if (magnitude > peaks[e]) peaks[e] = magnitude;
    }
  });
  const { high } = gridLimits(grid);
  const scale = Float32Array.from(peaks, (peak) => scaleFrom(peak / high));
  const encoding: Encoding = { ...grid, scale, zeroPoint: new Int32Array(scale.length), ...granularity };
  if (method === "mse") shrinkScales(values, dims, encoding);
  return encoding;
}

function notFinite(value: number, index: number, dims: readonly number[]): InputError {
  return new InputError({
    what: "a weight is not finite",
    got: `${value} at element ${index} of a tensor [${dims}]`,
    fix: "The file is damaged or float16 overflowed: export the model again in float32",
  });
}

const coarseRatios = Array.from({ length: 17 }, (_, i) => 1 - 0.045 * i);
const fineSteps = [-0.03, -0.0225, -0.015, -0.0075, 0.0075, 0.015, 0.0225, 0.03];

/** Replaces each scale by that multiple of it, 0.25 to 1, which leaves the least squared error in its group. */
function shrinkScales(values: Float32Array, dims: readonly number[], encoding: Encoding): void {
  const { scale } = encoding;
  const { low, high } = gridLimits(encoding);
  const groups = scale.length;
  const widest = scale.slice();
  const bestRatio = new Float64Array(groups).fill(1);
  const leastError = new Float64Array(groups).fill(Number.POSITIVE_INFINITY);
  const candidate = new Float32Array(groups);
  const errors = new Float64Array(groups);
  const attempt = (ratioOf: (group: number) => number): void => {
    for (let group = 0; group < groups; group++)
      candidate[group] = Math.max(widest[group] * ratioOf(group), smallestScale);
    errors.fill(0);
    forEachRun(dims, encoding, (start, end, entry, step) => {
      for (let i = start, e = entry; i < end; i++, e += step) {
        const step32 = candidate[e];
        const code = Math.min(high, Math.max(low, Math.round(values[i] / step32)));
        errors[e] += (values[i] - code * step32) ** 2;
      }
    });
    for (let group = 0; group < groups; group++) {
      if (errors[group] >= leastError[group]) continue;
      leastError[group] = errors[group];
      bestRatio[group] = ratioOf(group);
      scale[group] = candidate[group];
    }
  };
  for (const ratio of coarseRatios) attempt(() => ratio);
  const coarseBest = bestRatio.slice();
  for (const step of fineSteps) attempt((group) => Math.min(1, coarseBest[group] + step));
}
