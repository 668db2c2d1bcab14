/** Distributions of activations, and the quantization ranges chosen from them. */
import { InputError } from "@quad-lora/base";
import { encodingFromRange, type Grid, gridLimits } from "./encoding.ts";

/** Counts in equal bins over `[low, high]`. */
export interface Histogram {
  low: number;
  high: number;
  counts: Float64Array;
  /** Smallest and largest value seen, exactly; `Infinity` and `-Infinity` before the first. */
  min: number;
  max: number;
}

/** A range of values. */
export interface Range {
  min: number;
  max: number;
}

/**
 * How a range is chosen: all that was seen; the central `p` percent of it; the least expected squared error, that of
 * clipped values taken `clipWeight` times (default 1).
 */
export type RangeMethod =
  | { kind: "min-max" }
  | { kind: "percentile"; p: number }
  | { kind: "mse"; clipWeight?: number | undefined };

/** An empty histogram. A point range is widened a little so that bins have a width. */
export function createHistogram(low: number, high: number, bins = 2048): Histogram {
  if (!(Number.isFinite(low) && Number.isFinite(high) && low <= high && bins >= 1))
    throw new RangeError(`histogram over [${low}, ${high}] with ${bins} bins`);
  const margin = low === high ? Math.max(Math.abs(low) * 1e-6, 1e-30) : 0;
  return {
    low: low - margin,
    high: high + margin,
    counts: new Float64Array(bins),
    min: Number.POSITIVE_INFINITY,
    max: Number.NEGATIVE_INFINITY,
  };
}

/**
 * Counts values, in place. Those outside `[low, high]` count in the outermost bins; `min` and `max` stay exact.
 * @throws InputError if a value is not finite
 */
export function addValues(histogram: Histogram, values: Float32Array): void {
  const { low, high, counts } = histogram;
  const last = counts.length - 1;
  const perUnit = counts.length / (high - low);
  let { min, max } = histogram;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value < min) min = value;
    if (value > max) max = value;
    if (Number.isNaN(value)) throw notFinite(value);
    const bin = Math.floor((value - low) * perUnit);
    counts[bin < 0 ? 0 : Math.min(bin, last)]++;
  }
  if (values.length > 0 && !(Number.isFinite(min) && Number.isFinite(max)))
    throw notFinite(Number.isFinite(min) ? max : min);
  histogram.min = min;
  histogram.max = max;
}

function notFinite(value: number): InputError {
  return new InputError({
    what: "an activation is not finite",
    got: String(value),
    fix: "The model overflows on the calibration data: run it in float32, or check the data.",
  });
}

/** The histogram of both samples. Where edges differ it spans both ranges, and counts are shared out by overlap. */
export function mergeHistograms(a: Histogram, b: Histogram): Histogram {
  const min = Math.min(a.min, b.min);
  const max = Math.max(a.max, b.max);
  if (a.low === b.low && a.high === b.high && a.counts.length === b.counts.length)
    return { low: a.low, high: a.high, counts: a.counts.map((count, bin) => count + b.counts[bin]), min, max };
  const low = Math.min(a.low, b.low);
  const high = Math.max(a.high, b.high);
  const counts = new Float64Array(Math.max(a.counts.length, b.counts.length));
  shareOut(a, low, high, counts);
  shareOut(b, low, high, counts);
  return { low, high, counts, min, max };
}

function shareOut(from: Histogram, low: number, high: number, into: Float64Array): void {
  const perUnit = into.length / (high - low);
  const width = (from.high - from.low) / from.counts.length;
  const last = into.length - 1;
  from.counts.forEach((count, bin) => {
    if (count === 0) return;
    const begin = Math.max(0, (from.low + bin * width - low) * perUnit);
    const end = Math.min(into.length, (from.low + (bin + 1) * width - low) * perUnit);
    const first = Math.min(last, Math.floor(begin));
    let left = count;
    for (let target = first; target + 1 < end; target++) {
      const part = Math.min(left, (count * (target + 1 - Math.max(begin, target))) / (end - begin));
      into[target] += part;
      left -= part;
    }
    // What is left, so that no count is lost to rounding.
    into[Math.min(last, Math.max(first, Math.ceil(end) - 1))] += left;
  });
}

/**
 * The range of the central `p` percent of the values, `(100 - p) / 2` cut off on either side; linear inside bins.
 * @param p - over 0, up to 100, which gives exactly `[min, max]`
 */
export function percentileRange(histogram: Histogram, p: number): Range {
  if (!(p > 0 && p <= 100)) throw new RangeError(`percentile ${p}: over 0, at most 100`);
  assertNotEmpty(histogram);
  const { min, max, counts } = histogram;
  if (p === 100) return { min, max };
  const tail = ((100 - p) / 200) * counts.reduce((total, count) => total + count, 0);
  const clamp = (value: number) => Math.min(max, Math.max(min, value));
  return { min: clamp(quantile(histogram, tail, false)), max: clamp(quantile(histogram, tail, true)) };
}

/** The value with `tail` counts below it, or above it. */
function quantile({ low, high, counts }: Histogram, tail: number, fromAbove: boolean): number {
  const bins = counts.length;
  const width = (high - low) / bins;
  let left = tail;
  for (let step = 0; step < bins; step++) {
    const count = counts[fromAbove ? bins - 1 - step : step];
    if (count > 0 && left < count) {
      const position = (step + left / count) * width;
      return fromAbove ? high - position : low + position;
    }
    left -= count;
  }
  return fromAbove ? low : high;
}

/** Factor between neighbouring candidates of the first round; 18 of them reach down to 0.5 % of the range. */
const coarseFactor = 0.74;
const coarseCandidates = 18;
const zooms = 5;

/**
 * The range with the least expected squared error, rounding and clipping together, over lower and upper ends jointly:
 * geometric candidates first, then rounds with half the spacing around the best. Contains 0, and is contained in
 * what was seen (widened to 0), which is itself a candidate.
 */
export function mseRange(histogram: Histogram, grid: Grid, clipWeight = 1): Range {
  assertNotEmpty(histogram);
  const bottom = Math.min(0, histogram.min);
  const top = Math.max(0, histogram.max);
  const peak = Math.max(-bottom, top);
  let best: Range = { min: bottom, max: top };
  let least = Number.POSITIVE_INFINITY;
  const attempt = (low: number, high: number): void => {
    const min = Math.max(bottom, low);
    const max = Math.min(top, high);
    const error = expectedSquaredError(histogram, { min, max }, grid, clipWeight);
    if (error < least) {
      least = error;
      best = { min, max };
    }
  };
  const search = (lows: readonly number[], highs: readonly number[]): void => {
    // A symmetric grid has one end to choose.
    if (grid.symmetric) for (const end of lows) attempt(-end, end);
    else for (const low of lows) for (const high of highs) attempt(-low, high);
  };
  const start = Array.from({ length: coarseCandidates }, (_, i) => coarseFactor ** i);
  const ends = (limit: number) => (limit === 0 ? [0] : start.map((ratio) => limit * ratio));
  search(ends(grid.symmetric ? peak : -bottom), ends(top));
  let factor = coarseFactor;
  for (let zoom = 0; zoom < zooms; zoom++) {
    factor = Math.sqrt(factor);
    const around = (end: number) => (end === 0 ? [0] : [end * factor, end, end / factor]);
    const center = best;
    search(around(grid.symmetric ? Math.max(-center.min, center.max) : -center.min), around(center.max));
  }
  return best;
}

/**
 * Expected squared error of quantizing with this range, for values spread evenly inside each bin. The integral of the
 * squared error up to x, with n = the nearest code (clipped) and r = x - n s, is `n s^3 / 12 + r^3 / 3`.
 * @param clipWeight - factor on the error of values beyond the grid's ends. Rounding differs from run to run and averages
 *   out over them, clipping repeats: over T runs whose results add up, it counts T times as much.
 */
export function expectedSquaredError(histogram: Histogram, range: Range, grid: Grid, clipWeight = 1): number {
  const { scale, zeroPoint } = encodingFromRange(range.min, range.max, grid);
  const limits = gridLimits(grid);
  const lowest = limits.low - zeroPoint[0];
  const highest = limits.high - zeroPoint[0];
  const step = scale[0];
  const perCode = step ** 3 / 12;
  const { low, high, counts, min, max } = histogram;
  const bins = counts.length;
  const width = (high - low) / bins;
  const integral = (x: number): number => {
    const code = Math.min(highest, Math.max(lowest, Math.round(x / step)));
    const rest = x - code * step;
    const rounded = Math.min(step / 2, Math.max(-step / 2, rest));
    return code * perCode + (rounded ** 3 + clipWeight * (rest ** 3 - rounded ** 3)) / 3;
  };
  let error = 0;
  let total = 0;
  for (let bin = 0; bin < bins; bin++) {
    const count = counts[bin];
    if (count === 0) continue;
    // The outermost bins hold nothing beyond the values seen.
    const begin = Math.max(low + bin * width, Math.min(min, low + (bin + 1) * width));
    const end = Math.min(low + (bin + 1) * width, Math.max(max, begin));
    total += count;
    if (end - begin > 1e-9 * width) error += (count * (integral(end) - integral(begin))) / (end - begin);
    else {
      const code = Math.min(highest, Math.max(lowest, Math.round(begin / step)));
      const rest = begin - code * step;
      error += count * (Math.abs(rest) > step / 2 ? clipWeight : 1) * rest ** 2;
    }
  }
  return error / total;
}

/** The range of a distribution by one of the methods. */
export function chooseRange(histogram: Histogram, grid: Grid, method: RangeMethod): Range {
  assertNotEmpty(histogram);
  if (method.kind === "mse") return mseRange(histogram, grid, method.clipWeight);
  return percentileRange(histogram, method.kind === "percentile" ? method.p : 100);
}

function assertNotEmpty({ min, max }: Histogram): void {
  if (!(min <= max)) throw new RangeError("a range was asked of a histogram without values");
}
