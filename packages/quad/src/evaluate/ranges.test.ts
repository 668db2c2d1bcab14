import { expect, test } from "vitest";
import type { Observations } from "../records/observations.ts";
import type { Profile } from "../records/profile.ts";
import { clippedRanges } from "./ranges.ts";

/** One value, ten bins of width 1 from -5 to 5, two groups of time steps. */
const observations: Observations = {
  names: ["x"],
  stepGroups: 2,
  bins: 10,
  low: Float32Array.of(-5),
  high: Float32Array.of(5),
  tasks: [
    {
      task: "flat",
      minima: Float32Array.of(-5, -1),
      maxima: Float32Array.of(5, 1),
      // Group 0: uniform; group 1: only the two middle bins.
      counts: Float64Array.of(...new Array(10).fill(10), 0, 0, 0, 0, 50, 50, 0, 0, 0, 0),
    },
  ],
};

const profileOf = (scale: number, zeroPoint: number) =>
  ({ points: { "conv#0": { bits: 8, scale, zeroPoint } } }) as unknown as Profile;

const points = [{ name: "conv#0", kind: "layer-input" as const, observed: "x", layer: "conv" }];

test("counts what lies beyond the grid, by group of time steps", () => {
  // Codes 0..255 stand for -2.56..2.54: bins with middles 3.5, 4.5 and their negatives lie outside.
  const [range] = clippedRanges(points, profileOf(0.02, 128), observations);
  expect(range.low).toBeCloseTo(-2.56, 6);
  expect(range.high).toBeCloseTo(2.54, 6);
  expect(range.tasks.flat[0]).toEqual({ min: -5, max: 5, clipped: 0.4 });
  expect(range.tasks.flat[1]).toEqual({ min: -1, max: 1, clipped: 0 });
});

test("values within half a step of the grid's end are rounded, not clipped", () => {
  // The grid ends at 4.458; the outermost middle, 4.5, lies 0.042 beyond, which is more than half a step.
  const scale = 0.0351;
  const [range] = clippedRanges(points, profileOf(scale, 128), observations);
  expect(range.high).toBeLessThan(4.5);
  expect(4.5 - range.high).toBeGreaterThan(scale / 2);
  expect(range.tasks.flat[0].clipped).toBeCloseTo(0.1, 12);
  const [wider] = clippedRanges(points, profileOf(0.0353, 128), observations);
  expect(4.5 - wider.high).toBeLessThan(0.0353 / 2);
  expect(wider.tasks.flat[0].clipped).toBe(0);
});

test("points that calibration did not see are left out", () => {
  expect(clippedRanges([{ ...points[0], observed: "y" }], profileOf(1, 0), observations)).toEqual([]);
});
