import type { QuantizationPoint } from "../quantizable/points.ts";
import { encodingRange } from "../quantization/index.ts";
import type { PointRange } from "../records/evaluation.ts";
import type { Observations } from "../records/observations.ts";
import { type Profile, pointEncoding } from "../records/profile.ts";

/**
 * What the profile's grids clip at the layers' inputs, per task and group of time steps, from what calibration saw. A
 * value counts as clipped where its histogram bin's middle lies more than half a step of the grid beyond its ends: nearer
 * ones lose no more than rounding costs anywhere.
 */
export function clippedRanges(
  points: readonly QuantizationPoint[],
  profile: Profile,
  observations: Observations,
): PointRange[] {
  const { names, stepGroups, bins, low, high } = observations;
  const positions = new Map(names.map((name, index) => [name, index]));
  const result: PointRange[] = [];
  for (const { name, layer, observed } of points) {
    const position = positions.get(observed);
    const point = profile.points[name];
    if (layer === undefined || position === undefined || !point) continue;
    const range = encodingRange(pointEncoding(point));
    const half = point.scale / 2;
    const width = (high[position] - low[position]) / bins;
    const tasks: PointRange["tasks"] = {};
    for (const { task, minima, maxima, counts } of observations.tasks) {
      tasks[task] = Array.from({ length: stepGroups }, (_, group) => {
        const at = group * names.length + position;
        let outside = 0;
        let total = 0;
        for (let bin = 0; bin < bins; bin++) {
          const count = counts[at * bins + bin];
          const middle = low[position] + (bin + 0.5) * width;
          total += count;
          if (middle < range.min - half || middle > range.max + half) outside += count;
        }
        return { min: minima[at], max: maxima[at], clipped: total > 0 ? outside / total : 0 };
      });
    }
    result.push({ layer, point: name, bits: point.bits, low: range.min, high: range.max, tasks });
  }
  return result;
}
