import type { QuantizationPoint } from "../quantizable/points.ts";
import {
  type BitWidth,
  chooseRange,
  type Encoding,
  encodingFromRange,
  expectedSquaredError,
  type Grid,
  type Histogram,
  type Range,
} from "../quantization/index.ts";
import type { Observations } from "../records/observations.ts";
import type { Policy } from "../settings/policy.ts";

/** Bits per quantization point; what is not named is wide. */
export type Widths = (point: QuantizationPoint) => BitWidth;

/** The widths of a policy, given the layers that are narrow. */
export function widthsOf(
  policy: Pick<Policy, "narrowEverything" | "keepWide">,
  narrowLayers: ReadonlySet<string>,
): Widths {
  const keepWide = policy.keepWide.map((pattern) => new RegExp(pattern));
  return ({ name, layer }) => {
    if (layer !== undefined && narrowLayers.has(layer)) return 8;
    return policy.narrowEverything && !keepWide.some((pattern) => pattern.test(layer ?? name)) ? 8 : 16;
  };
}

type RangePolicy = Pick<Policy, "wideRange" | "wideHeadroom" | "narrowRange" | "balanceSteps">;

/**
 * One encoding per point (unsigned, affine, per tensor) from what the named tasks were seen to need: one task gives its own
 * profile or the anchor's, several give the merged (Unified-LoRA) one.
 */
export function chooseEncodings(
  points: readonly QuantizationPoint[],
  observations: Observations,
  tasks: readonly string[],
  widths: Widths,
  policy: RangePolicy,
): Encoding[] {
  return encodingChooser(points, observations, tasks, policy)(widths);
}

/** One range of all values that the tasks saw together, or for each point the range that serves the worst of them best. */
export type RangeChoice = "merged" | "mixed";

/** As `chooseEncodings`, for many choices of widths: every encoding is computed once. */
export function encodingChooser(
  points: readonly QuantizationPoint[],
  observations: Observations,
  tasks: readonly string[],
  policy: RangePolicy,
  choice: RangeChoice = "merged",
): (widths: Widths) => Encoding[] {
  const positions = new Map(observations.names.map((name, position) => [name, position]));
  const chosen = new Map<string, Encoding>();
  const choose = (observed: string, bits: BitWidth): Encoding => {
    const position = positions.get(observed);
    if (position === undefined) throw new Error(`"${observed}" was not observed`);
    const grid = { bits, signed: false, symmetric: false } as const;
    const method = bits === 16 ? policy.wideRange : policy.narrowRange;
    const room = bits === 16 ? policy.wideHeadroom : 1;
    const seenBy = (wanted: readonly string[]) => mergeTasks(observations, position, wanted, policy.balanceSteps);
    const rangeOf = (histogram: Histogram): Range => {
      const { min, max } = chooseRange(histogram, grid, method);
      return { min: room * min, max: room * max };
    };
    const merged = rangeOf(seenBy(tasks));
    if (choice === "merged" || tasks.length < 2) return encodingFromRange(merged.min, merged.max, grid);
    const seen = tasks.map((task) => seenBy([task]));
    const clipWeight = method.kind === "mse" ? method.clipWeight : undefined;
    const { min, max } = servingWorst(seen, [merged, ...seen.map(rangeOf)], grid, clipWeight);
    return encodingFromRange(min, max, grid);
  };
  return (widths) =>
    points.map((point) => {
      const bits = widths(point);
      const key = `${bits} ${point.observed}`;
      const encoding = chosen.get(key) ?? choose(point.observed, bits);
      chosen.set(key, encoding);
      return encoding;
    });
}

/**
 * The range under which the histogram that fares worst fares best, by the error relative to its own values: the first among
 * equals. Histograms without values, such as an adapter branch's at rank 0, fare the same under all.
 * @param ranges - to choose among, at least one
 */
export function servingWorst(
  seen: readonly Histogram[],
  ranges: readonly Range[],
  grid: Grid,
  clipWeight?: number,
): Range {
  const worst = (range: Range) =>
    Math.max(
      0,
      ...seen.filter(isFilled).map((histogram) => {
        const width = (histogram.high - histogram.low) / histogram.counts.length;
        const power = Math.max(secondMoment(histogram.counts, histogram.low, width), 1e-30);
        return expectedSquaredError(histogram, range, grid, clipWeight) / power;
      }),
    );
  const errors = ranges.map(worst);
  return ranges[errors.indexOf(Math.min(...errors))];
}

function isFilled({ counts }: Histogram): boolean {
  return counts.some((count) => count > 0);
}

/** What the tasks saw of one value, as one histogram. */
export function mergeTasks(
  { names, stepGroups, bins, low, high, tasks }: Observations,
  position: number,
  wanted: readonly string[],
  balanceSteps: boolean,
): Histogram {
  const counts = new Float64Array(bins);
  let min = 0;
  let max = 0;
  const width = (high[position] - low[position]) / bins;
  for (const task of tasks) {
    if (!wanted.includes(task.task)) continue;
    for (let group = 0; group < stepGroups; group++) {
      const at = group * names.length + position;
      min = Math.min(min, task.minima[at]);
      max = Math.max(max, task.maxima[at]);
      const found = task.counts.subarray(at * bins, (at + 1) * bins);
      const weight = balanceSteps ? 1 / Math.max(secondMoment(found, low[position], width), 1e-30) : 1;
      for (let bin = 0; bin < bins; bin++) counts[bin] += weight * found[bin];
    }
  }
  return { low: low[position], high: high[position], counts, min, max };
}

function secondMoment(counts: Float64Array, low: number, width: number): number {
  let sum = 0;
  let total = 0;
  for (let bin = 0; bin < counts.length; bin++) {
    const centre = low + (bin + 0.5) * width;
    sum += counts[bin] * centre * centre;
    total += counts[bin];
  }
  return total > 0 ? sum / total : 0;
}
