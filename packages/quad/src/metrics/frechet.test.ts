import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fitGaussian, frechetDistance, frechetDistanceOfGaussians, type Gaussian } from "./frechet.ts";
import { symmetricEigenvalues } from "./symmetric.ts";
import { seededNormal } from "./testing.ts";

/** Product of Givens rotations, `[n, n]` orthogonal. */
function rotation(n: number, seed: number): Float64Array {
  const normal = seededNormal(seed);
  const q = new Float64Array(n * n);
  for (let i = 0; i < n; i++) q[i * n + i] = 1;
  for (let a = 0; a < n; a++)
    for (let b = a + 1; b < n; b++) {
      const angle = 3 * normal();
      for (let k = 0; k < n; k++) {
        const [u, v] = [q[k * n + a], q[k * n + b]];
        q[k * n + a] = Math.cos(angle) * u - Math.sin(angle) * v;
        q[k * n + b] = Math.sin(angle) * u + Math.cos(angle) * v;
      }
    }
  return q;
}

/** `Q diag Q^T` */
function rotated(diagonal: number[], q: Float64Array): Float64Array {
  const n = diagonal.length;
  return Float64Array.from({ length: n * n }, (_, index) => {
    const [i, j] = [Math.floor(index / n), index % n];
    return diagonal.reduce((sum, value, k) => sum + q[i * n + k] * value * q[j * n + k], 0);
  });
}

const gaussian = (mean: number[], covariance: ArrayLike<number>): Gaussian => ({
  mean: Float64Array.from(mean),
  covariance: Float64Array.from(covariance),
});

const samples = (count: number, dim: number, seed: number, spread = 1) => {
  const normal = seededNormal(seed);
  return Float64Array.from({ length: count * dim }, (_, i) => normal() * spread * (1 + (i % dim)) + 0.1 * (i % dim));
};

describe("eigenvalues of symmetric matrices", () => {
  test.each([
    [1, [-2]],
    [2, [3, -3]],
    [5, [4, 4, 4, 0, -1e-3]],
    [9, [1e6, 1e3, 1, 1e-3, 0, 0, 0, -5, -7]],
    [24, Array.from({ length: 24 }, (_, i) => Math.round(100 * Math.sin(i)))],
  ])("a rotated diagonal of size %i gives its diagonal back", (n, diagonal) => {
    const values = symmetricEigenvalues(rotated(diagonal, rotation(n, n)), n);
    const largest = Math.max(...diagonal.map(Math.abs));
    const expected = [...diagonal].sort((a, b) => a - b);
    expect(Math.max(...expected.map((value, i) => Math.abs(value - values[i])))).toBeLessThan(1e-13 * n * largest);
  });

  test("the path graph's Laplacian has 2 - 2 cos(pi k / n)", () => {
    const n = 40;
    const matrix = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      matrix[i * n + i] = i === 0 || i === n - 1 ? 1 : 2;
      if (i > 0) matrix[i * n + i - 1] = matrix[(i - 1) * n + i] = -1;
    }
    const values = symmetricEigenvalues(matrix, n);
    for (let k = 0; k < n; k++) expect(values[k]).toBeCloseTo(2 - 2 * Math.cos((Math.PI * k) / n), 12);
  });
});

describe("Frechet distance", () => {
  test("in one dimension it is (m1 - m2)^2 + (s1 - s2)^2", () => {
    fc.assert(
      fc.property(
        fc.tuple(
          ...[0, 1].flatMap(() => [
            fc.double({ min: -50, max: 50, noNaN: true }),
            fc.double({ min: 0, max: 20, noNaN: true }),
          ]),
        ),
        ([m1, s1, m2, s2]) => {
          const got = frechetDistanceOfGaussians(gaussian([m1!], [s1! ** 2]), gaussian([m2!], [s2! ** 2]));
          expect(got).toBeCloseTo((m1! - m2!) ** 2 + (s1! - s2!) ** 2, 8);
        },
      ),
      { seed: 1 },
    );
  });

  test.each([
    ["regular", [9, 4, 1, 0.25], [1, 16, 2.25, 0.25]],
    ["singular", [9, 4, 0, 0], [1, 0, 2.25, 0]],
    ["one of them zero", [0, 0, 0, 0], [1, 3, 2, 5]],
  ])("commuting covariances, %s: sum of (s1 - s2)^2 in any rotation", (_name, first, second) => {
    const expected = first.reduce((sum, value, i) => sum + (Math.sqrt(value) - Math.sqrt(second[i])) ** 2, 25);
    for (const q of [rotation(4, 5), rotation(4, 6)]) {
      const a = gaussian([0, 3, 0, 0], rotated(first, q));
      const b = gaussian([0, 0, 4, 0], rotated(second, q));
      expect(frechetDistanceOfGaussians(a, b)).toBeCloseTo(expected, 7);
      expect(frechetDistanceOfGaussians(b, a)).toBeCloseTo(expected, 7);
    }
  });

  test("two planes of rank one: Tr root is |u . v|", () => {
    const [u, v] = [
      [2, 1, 0],
      [1, -1, 3],
    ];
    const outer = (x: number[]) => x.flatMap((a) => x.map((b) => a * b));
    const got = frechetDistanceOfGaussians(gaussian([0, 0, 0], outer(u!)), gaussian([0, 0, 0], outer(v!)));
    expect(got).toBeCloseTo(5 + 11 - 2 * Math.abs(2 - 1), 12);
  });

  test("covariances that do not commute, 2x2: Tr root = sqrt(Tr(AB) + 2 sqrt(det A det B))", () => {
    const a = [3, 1, 1, 2];
    const b = [1, -0.5, -0.5, 4];
    const traceOfProduct = 3 * 1 + 1 * -0.5 + 1 * -0.5 + 2 * 4;
    const root = Math.sqrt(traceOfProduct + 2 * Math.sqrt(5 * 3.75));
    expect(frechetDistanceOfGaussians(gaussian([0, 0], a), gaussian([0, 0], b))).toBeCloseTo(5 + 5 - 2 * root, 12);
  });

  test("SciPy's sqrtm on 40 samples of 6 features", () => {
    const a = Float64Array.from({ length: 240 }, (_, i) => Math.sin(i * 1.7));
    const b = Float64Array.from({ length: 240 }, (_, i) => Math.cos(i * 0.9) * 1.5 + 0.2);
    expect(Math.abs(frechetDistance(a, b, 6) - 7.593707043531578)).toBeLessThan(1e-6);
  });

  test.each([
    [200, 8],
    [5, 8],
    [2, 30],
  ])("features and their fitted Gaussians agree with %i samples of %i features", (count, dim) => {
    const a = samples(count, dim, 1);
    const b = samples(count + 3, dim, 2, 1.5);
    const direct = frechetDistance(a, b, dim);
    expect(direct).toBeGreaterThan(0.1);
    expect(Math.abs(direct / frechetDistanceOfGaussians(fitGaussian(a, dim), fitGaussian(b, dim)) - 1)).toBeLessThan(
      1e-7,
    );
    expect(Math.abs(direct / frechetDistance(b, a, dim) - 1)).toBeLessThan(1e-7);
  });

  test("a shifted copy is as far as the shift; a copy is not far at all; a scaled copy by the factor's square", () => {
    const a = samples(50, 12, 3);
    const shifted = a.map((value, i) => value + (i % 12 === 4 ? 3 : 0));
    expect(frechetDistance(a, shifted, 12)).toBeCloseTo(9, 5);
    expect(frechetDistance(a, a, 12)).toBeLessThan(1e-5);
    const zeroMean = Float64Array.from([...a, ...a.map((value) => -value)]);
    const trace = fitGaussian(zeroMean, 12).covariance.reduce((sum, v, i) => sum + (i % 13 === 0 ? v : 0), 0);
    expect(
      frechetDistance(
        zeroMean,
        zeroMean.map((value) => 3 * value),
        12,
      ) /
        (4 * trace),
    ).toBeCloseTo(1, 9);
  });

  test("refuses what is not a feature set or a covariance", () => {
    expect(() => frechetDistance(new Float32Array(10), new Float32Array(12), 4)).toThrow(/at least 2 samples of 4/);
    expect(() => frechetDistance(new Float32Array(4), new Float32Array(8), 4)).toThrow(/first feature set/);
    expect(() => frechetDistance(new Float32Array(8), new Float32Array(8).fill(Number.NaN), 4)).toThrow(/finite/);
    const good = gaussian([0, 0], [1, 0, 0, 1]);
    expect(() => frechetDistanceOfGaussians(good, gaussian([0, 0], [1, 2, 2, 1]))).toThrow(/positive semidefinite/);
    expect(() => frechetDistanceOfGaussians(good, gaussian([0], [1]))).toThrow(/dimension/);
    expect(() => frechetDistanceOfGaussians(good, gaussian([0, 0], [1, Number.NaN, 0, 1]))).toThrow(/not finite/);
    expect(() => frechetDistanceOfGaussians(good, gaussian([0, 0], [1, 2]))).toThrow(/expected 4 values/);
  });
});
