import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { jensenShannonDivergence, sqnr } from "./divergence.ts";

describe("Jensen-Shannon divergence", () => {
  test("is 0 for proportional histograms and ln 2 without a common bin", () => {
    expect(jensenShannonDivergence([1, 2, 3], [10, 20, 30])).toBeCloseTo(0, 15);
    expect(jensenShannonDivergence([3, 1, 0, 0], [0, 0, 2, 9])).toBeCloseTo(Math.LN2, 15);
  });

  test("a certain event against a fair coin: (3/4) ln(4/3)", () => {
    expect(jensenShannonDivergence([1, 0], [0.5, 0.5])).toBeCloseTo(0.75 * Math.log(4 / 3), 14);
  });

  test("equals the entropy of the mean less the mean entropy, is symmetric, and stays within 0 and ln 2", () => {
    const histogram = fc.array(fc.double({ min: 0, max: 100, noNaN: true }), { minLength: 6, maxLength: 6 });
    const normalise = (values: number[]) => {
      const total = values.reduce((sum, value) => sum + value, 0);
      return values.map((value) => value / total);
    };
    const entropy = (values: number[]) =>
      -values.reduce((sum, value) => sum + (value > 0 ? value * Math.log(value) : 0), 0);
    fc.assert(
      fc.property(histogram, histogram, (p, q) => {
        fc.pre(Math.max(...p) > 1e-3 && Math.max(...q) > 1e-3);
        const [a, b] = [normalise(p), normalise(q)];
        const expected = entropy(a.map((value, i) => (value + b[i]) / 2)) - (entropy(a) + entropy(b)) / 2;
        const got = jensenShannonDivergence(p, q);
        expect(got).toBeCloseTo(expected, 11);
        expect(jensenShannonDivergence(q, p)).toBeCloseTo(got, 12);
        expect(got).toBeGreaterThanOrEqual(0);
        expect(got).toBeLessThanOrEqual(Math.LN2 + 1e-12);
      }),
      { seed: 2 },
    );
  });

  test("refuses negative, empty and unequal histograms", () => {
    expect(() => jensenShannonDivergence([1, -1], [1, 1])).toThrow(/first histogram, bin 1/);
    expect(() => jensenShannonDivergence([1, 1], [1, Number.NaN])).toThrow(/second histogram, bin 1/);
    expect(() => jensenShannonDivergence([0, 0], [1, 1])).toThrow(/empty/);
    expect(() => jensenShannonDivergence([1], [1, 1])).toThrow(/expected 1 values, got 2/);
  });
});

describe("SQNR", () => {
  test("an error of a tenth is 20 dB, of double the signal -6.02 dB", () => {
    const signal = Float32Array.from([1, -2, 3, 4]);
    expect(
      sqnr(
        signal,
        signal.map((value) => 0.9 * value),
      ),
    ).toBeCloseTo(20, 5);
    expect(
      sqnr(
        signal,
        signal.map((value) => -value),
      ),
    ).toBeCloseTo(-6.0206, 4);
  });

  test("a full-scale ramp in n bits has about 6.02 n dB", () => {
    const ramp = Float64Array.from({ length: 100000 }, (_, i) => (i + 0.5) / 100000 - 0.5);
    for (const bits of [4, 8, 10]) {
      const levels = 2 ** bits;
      const quantized = ramp.map((value) => (Math.floor(value * levels) + 0.5) / levels);
      expect(sqnr(ramp, quantized)).toBeCloseTo(20 * Math.log10(levels), 1);
    }
  });

  test("is infinite without error, minus infinity without signal", () => {
    expect(sqnr([0, 1], [0, 1])).toBe(Number.POSITIVE_INFINITY);
    expect(sqnr([0, 0], [0, 1])).toBe(Number.NEGATIVE_INFINITY);
    expect(() => sqnr([1, 2], [1])).toThrow(/expected 2 values, got 1/);
  });
});
