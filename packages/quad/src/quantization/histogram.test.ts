import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { encodingFromRange, fakeQuantize, type Grid } from "./encoding.ts";
import {
  addValues,
  chooseRange,
  createHistogram,
  expectedSquaredError,
  type Histogram,
  mergeHistograms,
  mseRange,
  percentileRange,
} from "./histogram.ts";

const uint8: Grid = { bits: 8, signed: false, symmetric: false };
const shapes = ["normal", "heavy", "one-sided", "uniform", "spike"] as const;

function sample(shape: (typeof shapes)[number], count: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 1) >>> 0;
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const normal = () => Math.sqrt(-2 * Math.log(uniform() + 1e-12)) * Math.cos(2 * Math.PI * uniform());
  return Float32Array.from({ length: count }, () => {
    if (shape === "normal") return normal();
    if (shape === "heavy") return normal() ** 5;
    if (shape === "one-sided") return Math.abs(normal()) ** 3;
    if (shape === "uniform") return uniform() * 3 - 1;
    return uniform() < 0.999 ? normal() : 60 * normal();
  });
}

function histogramOf(values: Float32Array, bins = 2048): Histogram {
  const histogram = createHistogram(least(values), -least(values.map((value) => -value)), bins);
  addValues(histogram, values);
  return histogram;
}

const least = (values: Float32Array) => values.reduce((a, b) => Math.min(b, a), Number.POSITIVE_INFINITY);
const total = ({ counts }: Histogram) => counts.reduce((sum, count) => sum + count, 0);

function actualError(values: Float32Array, range: { min: number; max: number }, grid: Grid): number {
  const result = fakeQuantize(values, [values.length], encodingFromRange(range.min, range.max, grid));
  return values.reduce((sum, value, i) => sum + (value - result[i]) ** 2, 0) / values.length;
}

describe("least squared error", () => {
  for (const shape of shapes) {
    for (const bits of [4, 8, 16] as const) {
      test(`${shape} values, ${bits} bits: measured error at most that of min-max`, () => {
        for (const symmetric of [true, false]) {
          const grid: Grid = { bits, signed: symmetric, symmetric };
          const values = sample(shape, 20_000, bits);
          const histogram = histogramOf(values);
          const range = mseRange(histogram, grid);
          const minMax = chooseRange(histogram, grid, { kind: "min-max" });
          expect(range.min).toBeLessThanOrEqual(0);
          expect(range.max).toBeGreaterThanOrEqual(0);
          // Where nothing is to be gained the two differ by sampling noise only.
          expect(actualError(values, range, grid)).toBeLessThanOrEqual(actualError(values, minMax, grid) * 1.005);
        }
      });
    }
  }

  test("outliers: clearly less error than min-max, and near the best of a dense search", () => {
    const values = sample("heavy", 20_000, 5);
    const histogram = histogramOf(values, 4096);
    const grid: Grid = { bits: 4, signed: false, symmetric: false };
    const { min, max } = percentileRange(histogram, 100);
    const found = actualError(values, mseRange(histogram, grid), grid);
    expect(found).toBeLessThan(actualError(values, { min, max }, grid) / 1.4);
    let best = Number.POSITIVE_INFINITY;
    for (let i = 1; i <= 40; i++)
      for (let j = 1; j <= 40; j++)
        best = Math.min(best, actualError(values, { min: (min * i) / 40, max: (max * j) / 40 }, grid));
    expect(found).toBeLessThan(best * 1.03);
  });

  test("expected error equals the measured one", () => {
    const values = sample("normal", 200_000, 9);
    const range = { min: -1.5, max: 2 };
    for (const bits of [4, 8] as const) {
      const grid: Grid = { bits, signed: true, symmetric: false };
      const expected = expectedSquaredError(histogramOf(values), range, grid);
      expect(expected / actualError(values, range, grid)).toBeCloseTo(1, 2);
    }
  });

  test("a range not touching zero is widened to it", () => {
    const range = mseRange(histogramOf(sample("uniform", 1000, 1).map((value) => value + 5)), uint8);
    expect(range.min).toBe(0);
  });
});

describe("percentiles", () => {
  test("100 is exactly min-max", () => {
    fc.assert(
      fc.property(fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { minLength: 1 }), (list) => {
        const values = Float32Array.from(list, (value) => value / 4);
        const histogram = histogramOf(values);
        const expected = { min: Math.min(...values), max: Math.max(...values) };
        expect(percentileRange(histogram, 100)).toEqual(expected);
        expect(chooseRange(histogram, uint8, { kind: "min-max" })).toEqual(expected);
      }),
      { seed: 4 },
    );
  });

  test("cuts the right shares of a ramp", () => {
    const values = Float32Array.from({ length: 10_001 }, (_, i) => i / 100);
    const { min, max } = percentileRange(histogramOf(values), 98);
    expect(min).toBeCloseTo(1, 1);
    expect(max).toBeCloseTo(99, 1);
  });
});

describe("histograms", () => {
  test("merging equal edges adds, merging others keeps count, mean and extremes", () => {
    const a = sample("normal", 5000, 1);
    const b = sample("normal", 3000, 2).map((value) => value * 3 + 4);
    const same = createHistogram(-20, 20);
    addValues(same, a);
    const other = createHistogram(-20, 20);
    addValues(other, b);
    const both = createHistogram(-20, 20);
    addValues(both, a);
    addValues(both, b);
    expect(mergeHistograms(same, other)).toEqual(both);

    const merged = mergeHistograms(histogramOf(a, 512), histogramOf(b, 300));
    expect(total(merged)).toBeCloseTo(8000, 6);
    const width = (merged.high - merged.low) / merged.counts.length;
    const mean = merged.counts.reduce((sum, count, bin) => sum + count * (merged.low + (bin + 0.5) * width), 0) / 8000;
    const exact = (a.reduce((x, y) => x + y, 0) + b.reduce((x, y) => x + y, 0)) / 8000;
    expect(mean).toBeCloseTo(exact, 1);
    expect(merged.min).toBe(Math.min(...a, ...b));
    expect(merged.max).toBe(Math.max(...a, ...b));
  });

  test("re-binning loses no count whatever the edges", () => {
    const edges = fc.tuple(
      fc.double({ min: -100, max: 100, noNaN: true }),
      fc.double({ min: 0, max: 50, noNaN: true }),
    );
    const counts = fc.array(fc.nat(1000), { minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(edges, edges, counts, counts, ([lowA, widthA], [lowB, widthB], countsA, countsB) => {
        const make = (low: number, width: number, list: number[]) => ({
          ...createHistogram(low, low + width, list.length),
          counts: Float64Array.from(list),
          min: low,
          max: low + width,
        });
        const a = make(lowA, widthA, countsA);
        const b = make(lowB, widthB, countsB);
        const merged = mergeHistograms(a, b);
        expect(total(merged)).toBeCloseTo(total(a) + total(b), 6);
        expect(Math.min(...merged.counts)).toBeGreaterThanOrEqual(-1e-9);
      }),
      { seed: 5, numRuns: 300 },
    );
  });

  test("values outside the edges count, constant tensors work, broken values are refused", () => {
    const histogram = createHistogram(0, 1, 4);
    addValues(histogram, Float32Array.of(-5, 0.3, 1, 9));
    expect([...histogram.counts]).toEqual([1, 1, 0, 2]);
    expect([histogram.min, histogram.max]).toEqual([-5, 9]);
    const constant = histogramOf(Float32Array.of(3, 3, 3));
    const range = mseRange(constant, uint8);
    expect(actualError(Float32Array.of(3), range, uint8)).toBeLessThan(1e-9);
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY])
      expect(() => addValues(createHistogram(0, 1), Float32Array.of(0.5, bad))).toThrow(InputError);
  });
});

describe("clipping that weighs more than rounding", () => {
  const grid = uint8;
  const histogram = createHistogram(-4, 4, 64);
  addValues(
    histogram,
    sample("normal", 20000, 5).map((value) => Math.max(-4, Math.min(4, value))),
  );

  test("counts the error of values beyond the grid's ends that many times", () => {
    const range = { min: -1.5, max: 1 };
    const { scale, zeroPoint } = encodingFromRange(range.min, range.max, grid);
    const ends = [-zeroPoint[0] * scale[0], (255 - zeroPoint[0]) * scale[0]];
    let [rounding, clipping, total] = [0, 0, 0];
    const { counts, low, high } = histogram;
    const width = (high - low) / counts.length;
    const points = 2000;
    for (const [bin, count] of counts.entries()) {
      for (let i = 0; i < points; i++) {
        const x = low + (bin + (i + 0.5) / points) * width;
        const code = Math.min(255, Math.max(0, Math.round(x / scale[0]) + zeroPoint[0]));
        const error = (count / points) * (x - (code - zeroPoint[0]) * scale[0]) ** 2;
        if (x < ends[0] - scale[0] / 2 || x > ends[1] + scale[0] / 2) clipping += error;
        else rounding += error;
      }
      total += count;
    }
    for (const weight of [1, 4, 16]) {
      const expected = (rounding + weight * clipping) / total;
      expect(expectedSquaredError(histogram, range, grid, weight) / expected).toBeCloseTo(1, 2);
    }
  });

  test("widens the chosen range towards all that was seen", () => {
    const spans = [1, 4, 64, 1e9].map((clipWeight) => {
      const { min, max } = chooseRange(histogram, grid, { kind: "mse", clipWeight });
      return max - min;
    });
    for (let i = 1; i < spans.length; i++) expect(spans[i]).toBeGreaterThanOrEqual(spans[i - 1]);
    expect(spans[2]).toBeGreaterThan(spans[0]);
    expect(spans[3]).toBeCloseTo(histogram.max - histogram.min, 6);
  });
});
