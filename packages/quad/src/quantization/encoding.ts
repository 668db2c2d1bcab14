/** Choice of quantization parameters: from a range, or from the values of a weight. */
import { InputError } from "@quad-lora/base";
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
      fix: "Check that the model's activations and weights are finite.",
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

/** Bits, granularity and range of a weight's encoding. */
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
    fix: "The file is damaged or float16 overflowed: export the model again in float32.",
  });
}

const coarseRatios = Array.from({ length: 17 }, (_, i) => 1 - 0.045 * i);
const fineSteps = [-0.03, -0.0225, -0.015, -0.0075, 0.0075, 0.015, 0.0225, 0.03];

/** Replaces each scale by that multiple of it, 0.25 to 1, which leaves the least squared error in its group. */
function shrinkScales(values: Float32Array, dims: readonly number[], encoding: Encoding): void {
  const { scale } = encoding;
  const { low, high } = gridLimits(encoding);
  const { gathered, offsets } = gatherGroups(values, dims, encoding);
  for (let group = 0; group < scale.length; group++) {
    const own = gathered.subarray(offsets[group], offsets[group + 1]);
    const widest = scale[group];
    let bestRatio = 1;
    let least = Number.POSITIVE_INFINITY;
    const attempt = (ratio: number): void => {
      const step = Math.fround(Math.max(widest * ratio, smallestScale));
      const error = squaredError(own, step, low, high, least);
      if (error >= least) return;
      least = error;
      bestRatio = ratio;
      scale[group] = step;
    };
    for (const ratio of coarseRatios) attempt(ratio);
    const coarseBest = bestRatio;
    for (const step of fineSteps) attempt(Math.min(1, coarseBest + step));
  }
}

/** The elements of each group side by side: every group is searched many times, and memory is slow where they lie apart. */
function gatherGroups(
  values: Float32Array,
  dims: readonly number[],
  encoding: Encoding,
): { gathered: Float32Array; offsets: Float64Array } {
  const offsets = new Float64Array(encoding.scale.length + 1);
  forEachRun(dims, encoding, (start, end, entry, step) => {
    if (step === 0) offsets[entry + 1] += end - start;
    else for (let i = start, e = entry; i < end; i++, e++) offsets[e + 1]++;
  });
  for (let group = 1; group < offsets.length; group++) offsets[group] += offsets[group - 1];
  const next = offsets.slice();
  const gathered = new Float32Array(values.length);
  forEachRun(dims, encoding, (start, end, entry, step) => {
    for (let i = start, e = entry; i < end; i++, e += step) gathered[next[e]++] = values[i];
  });
  return { gathered, offsets };
}

/** Squared error of values on a grid; where it exceeds `enough`, any number from there on. */
function squaredError(values: Float32Array, step: number, low: number, high: number, enough: number): number {
  let error = 0;
  for (let start = 0; start < values.length && error < enough; start += 256) {
    const end = Math.min(start + 256, values.length);
    for (let i = start; i < end; i++) {
      const clamped = Math.min(high, Math.max(low, values[i] / step));
      // Rounds to the nearest integer: see the constant of the same use in codes.ts.
      const difference = values[i] - (clamped + 6755399441055744 - 6755399441055744) * step;
      error += difference * difference;
    }
  }
  return error;
}
