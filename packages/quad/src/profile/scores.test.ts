import { describe, expect, test } from "vitest";
import { ScoreKeeper } from "./scores.ts";

function scoresOf(exact: number[], approximate: number[], dims: number[]) {
  const keeper = new ScoreKeeper();
  keeper.add({ output: { type: "float32", dims, data: Float32Array.from(exact) } }, Float32Array.from(approximate));
  return keeper.scores();
}

describe("quantization sensitivity score", () => {
  test("equal outputs score 0 and have no noise", () => {
    const values = [1, 2, -3, 0.5, 0, 0, 7, 8];
    expect(scoresOf(values, values, [1, 2, 2, 2])).toEqual({ qss: 0, sqnr: Number.POSITIVE_INFINITY });
  });

  test("a field of two pixels, computed by hand", () => {
    // Mean 0, deviation 1: the exact distribution is softmax(1, -1), the other softmax(-1, 1).
    const p = Math.E / (Math.E + 1 / Math.E);
    const divergence = p * Math.log(p / 0.5) + (1 - p) * Math.log((1 - p) / 0.5);
    const { qss, sqnr } = scoresOf([1, -1], [-1, 1], [1, 1, 1, 2]);
    expect(qss).toBeCloseTo(divergence, 12);
    // Signal 1 + 1, noise 4 + 4.
    expect(sqnr).toBeCloseTo(10 * Math.log10(2 / 8), 12);
  });

  test("is symmetric for fields of the same mean and deviation, and at most ln 2", () => {
    const a = [3, 0, 0, -3];
    const b = [-3, 0, 3, 0];
    const dims = [1, 1, 2, 2];
    expect(scoresOf(a, b, dims).qss).toBeCloseTo(scoresOf(b, a, dims).qss, 12);
    const far = scoresOf([1, -1, 0, 0], [-1e6, 1e6, 0, 0], dims).qss;
    expect(far).toBeLessThanOrEqual(Math.LN2);
    // All of the approximation's mass is on a pixel that holds 5 % of the exact one's.
    expect(far).toBeGreaterThan(0.6);
  });

  test("does not depend on the output's scale or offset; constant fields do not divide by zero", () => {
    const exact = [1, 4, 2, 0.5];
    const other = [1.5, 3, 2, 0.25];
    const dims = [1, 1, 2, 2];
    const scaled = (values: number[]) => values.map((value) => 8 * value + 16);
    expect(scoresOf(scaled(exact), scaled(other), dims).qss).toBeCloseTo(scoresOf(exact, other, dims).qss, 6);
    expect(scoresOf([2, 2, 2, 2], [2, 2, 2, 2], dims).qss).toBe(0);
  });

  test("rows, channels and calls are averaged; SQNR is of all together", () => {
    const keeper = new ScoreKeeper();
    const dims = [2, 1, 1, 2];
    const exact = Float32Array.of(1, -1, 1, -1);
    keeper.add({ output: { type: "float32", dims, data: exact } }, Float32Array.of(1, -1, -1, 1));
    keeper.add({ output: { type: "float32", dims, data: exact } }, exact);
    const one = scoresOf([1, -1], [-1, 1], [1, 1, 1, 2]).qss;
    const { qss, sqnr } = keeper.scores();
    expect(qss).toBeCloseTo(one / 4, 12);
    expect(sqnr).toBeCloseTo(10 * Math.log10(8 / 8), 12);
  });
});
