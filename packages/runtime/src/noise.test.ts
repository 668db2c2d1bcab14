import { describe, expect, test } from "vitest";
import { SeededRandom, seededNoise, splitMix64 } from "./noise.ts";

describe("published vectors", () => {
  test("xoshiro128** 1.1 from the state 1, 2, 3, 4 (reference C code, as in the rand_xoshiro crate)", () => {
    const random = new SeededRandom({ words: [1, 2, 3, 4], spareNormal: null });
    expect(Array.from({ length: 10 }, () => random.word())).toEqual([
      11520, 0, 5927040, 70819200, 2031721883, 1637235492, 1287239034, 3734860849, 3729100597, 4258142804,
    ]);
  });

  test("SplitMix64 from 1234567", () => {
    expect(splitMix64(1234567n, 5)).toEqual([
      6457827717110365317n,
      3203168211198807973n,
      9817491932198370423n,
      4593380528125082431n,
      16408922859458223821n,
    ]);
  });
});

/** Sample moments of a standard normal lie within this many standard errors. */
const standardErrors = 4;

describe("seededNoise", () => {
  test.each([0, 1, -7, Number.MAX_SAFE_INTEGER])("is standard normal for seed %i", (seed) => {
    const count = 200_000;
    const noise = seededNoise(seed, count);
    const moment = (power: number) => noise.reduce((sum, value) => sum + value ** power, 0) / count;
    // Variances of x, x^2, x^3 and x^4 for a standard normal: 1, 2, 15 and 96.
    const expected = [
      [1, 0, 1],
      [2, 1, 2],
      [3, 0, 15],
      [4, 3, 96],
    ] as const;
    for (const [power, mean, variance] of expected) {
      expect(Math.abs(moment(power) - mean)).toBeLessThan(standardErrors * Math.sqrt(variance / count));
    }
    const products = noise.subarray(1).reduce((sum, value, i) => sum + value * noise[i], 0) / count;
    expect(Math.abs(products)).toBeLessThan(standardErrors / Math.sqrt(count));
  });

  test("has the quantiles of a standard normal", () => {
    const count = 200_000;
    const noise = seededNoise(3, count).sort();
    const probabilities = [
      [-3, 0.0013498980316],
      [-1, 0.1586552539315],
      [0, 0.5],
      [0.5, 0.691462461274],
      [2, 0.9772498680518],
    ] as const;
    for (const [threshold, probability] of probabilities) {
      const below = noise.findIndex((value) => value > threshold) / count;
      const deviation = Math.sqrt((probability * (1 - probability)) / count);
      expect(Math.abs(below - probability)).toBeLessThan(standardErrors * deviation);
    }
  });

  test("depends on nothing but the seed, and a short array is a prefix of a long one", () => {
    expect(seededNoise(42, 1001)).toEqual(seededNoise(42, 1001));
    expect(seededNoise(42, 2000).subarray(0, 1001)).toEqual(seededNoise(42, 1001));
    expect(seededNoise(43, 16)).not.toEqual(seededNoise(42, 16));
    expect(seededNoise(-42, 16)).not.toEqual(seededNoise(42, 16));
  });

  test("is Box and Muller's transform of the uniforms, as Math computes it", () => {
    const uniforms = new SeededRandom(17);
    const normals = new SeededRandom(17);
    let largest = 0;
    for (let pair = 0; pair < 20_000; pair++) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniforms.uniform()));
      const angle = 2 * Math.PI * uniforms.uniform();
      const cosineError = Math.abs(normals.normal() - radius * Math.cos(angle));
      const sineError = Math.abs(normals.normal() - radius * Math.sin(angle));
      largest = Math.max(largest, cosineError, sineError);
    }
    expect(largest).toBeLessThan(1e-14);
  });
});

describe("SeededRandom", () => {
  test("goes on from a saved state, through JSON, after any number of normals", () => {
    for (const drawn of [0, 1, 2, 5]) {
      const random = new SeededRandom(9);
      for (let i = 0; i < drawn; i++) random.normal();
      const restored = new SeededRandom(JSON.parse(JSON.stringify(random.state)));
      const next = (from: SeededRandom) => [from.normal(), from.uniform(), from.integer(1000), from.normal()];
      expect(next(restored)).toEqual(next(random));
    }
  });

  test("gives a state that later draws do not change", () => {
    const random = new SeededRandom(1);
    const { state } = random;
    const copy = structuredClone(state);
    random.normal();
    expect(state).toEqual(copy);
  });

  test("uniform lies in [0, 1) with mean 1/2 and variance 1/12", () => {
    const random = new SeededRandom(5);
    const count = 100_000;
    const values = Array.from({ length: count }, () => random.uniform());
    expect(values.every((value) => value >= 0 && value < 1)).toBe(true);
    const mean = values.reduce((sum, value) => sum + value, 0) / count;
    const variance = values.reduce((sum, value) => sum + (value - 0.5) ** 2, 0) / count;
    expect(Math.abs(mean - 1 / 2)).toBeLessThan(standardErrors * Math.sqrt(1 / 12 / count));
    expect(Math.abs(variance - 1 / 12)).toBeLessThan(standardErrors * Math.sqrt(1 / 180 / count));
  });

  test("integer is uniform (chi-squared, 6 degrees of freedom, 1 in 10000)", () => {
    const random = new SeededRandom(11);
    const counts = new Array<number>(7).fill(0);
    for (let i = 0; i < 70_000; i++) counts[random.integer(7)]!++;
    const chiSquared = counts.reduce((sum, count) => sum + (count - 10_000) ** 2 / 10_000, 0);
    expect(chiSquared).toBeLessThan(27.86);
    expect(random.integer(1)).toBe(0);
    expect(random.integer(Number.MAX_SAFE_INTEGER)).toBeLessThan(Number.MAX_SAFE_INTEGER);
  });

  test("refuses bad seeds, states and ranges", () => {
    for (const seed of [0.5, Number.NaN, 2 ** 53]) expect(() => new SeededRandom(seed)).toThrow(RangeError);
    for (const words of [
      [0, 0, 0, 0],
      [1, 2, 3, 2 ** 32],
      [1, 2, 3, -1],
      [1, 2, 3],
    ]) {
      expect(() => new SeededRandom({ words: words as never, spareNormal: null })).toThrow(RangeError);
    }
    for (const n of [0, -1, 1.5, 2 ** 53]) expect(() => new SeededRandom(1).integer(n)).toThrow(RangeError);
  });
});
