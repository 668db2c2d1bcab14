import type { Observations } from "../calibrate/observations.ts";
import { type BitWidth, chooseRange, type Encoding, encodingFromRange, type Histogram } from "../quantization/index.ts";
import type { QuantizationPoint } from "../simulate/simulation-graph.ts";
import type { Policy } from "./policy.ts";

/** Bits per quantization point; what is not named is wide. */
export type Widths = (point: QuantizationPoint) => BitWidth;

/** The widths of a policy, given the layers that are narrow. */
export function widthsOf(policy: Pick<Policy, "narrowEverything">, narrowLayers: ReadonlySet<string>): Widths {
  return (point) => {
    if (policy.narrowEverything) return 8;
    return point.layer !== undefined && narrowLayers.has(point.layer) ? 8 : 16;
  };
}

/**
 * One encoding per point (unsigned, affine, per tensor) from what the named tasks were seen to need: one task gives its own
 * profile or the anchor's, several give the merged (Unified-LoRA) one.
 */
export function chooseEncodings(
  points: readonly QuantizationPoint[],
  observations: Observations,
  tasks: readonly string[],
  widths: Widths,
  policy: Pick<Policy, "wideRange" | "narrowRange" | "balanceSteps">,
): Encoding[] {
  const index = new Map(observations.names.map((name, position) => [name, position]));
  return points.map((point) => {
    const bits = widths(point);
    const grid = { bits, signed: false, symmetric: false } as const;
    const position = index.get(point.observed);
    if (position === undefined) throw new Error(`"${point.observed}" was not observed`);
    const histogram = mergeTasks(observations, position, tasks, policy.balanceSteps);
    const { min, max } = chooseRange(histogram, grid, bits === 16 ? policy.wideRange : policy.narrowRange);
    return encodingFromRange(min, max, grid);
  });
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
