/** How much of a product `A B` is lost when both factors are quantized to symmetric per-tensor grids. */
import { type BitWidth, gridLimits } from "../quantization/encoding.ts";
import { peakOf, type RankRows, squaredNorm, squaredProductNorm } from "./rows.ts";

/** Largest code of the symmetric grid: 127 at 8 bits. */
export function largestCode(bits: BitWidth): number {
  return gridLimits({ bits, signed: true, symmetric: true }).high;
}

/** A row as it comes back from the grid, with the arithmetic of `fakeQuantize`. */
export function quantizeRow(row: Float64Array, scale: number, high: number): Float64Array {
  const result = new Float64Array(row.length);
  for (let i = 0; i < row.length; i++) {
    const quotient = Math.fround(Math.fround(row[i]) / scale);
    const clamped = Math.min(high, Math.max(-high, quotient));
    // Rounds to the nearest integer, ties to even: see the constant of the same use in codes.ts.
    result[i] = Math.fround((clamped + 6755399441055744 - 6755399441055744) * scale);
  }
  return result;
}

/** Scale whose grid just reaches the largest magnitude of the rows; 1 if all are zero. */
export function peakScale(rows: readonly Float64Array[], high: number): number {
  const peak = rows.reduce((most, row) => Math.max(most, peakOf(row)), 0);
  return peak === 0 ? 1 : Math.max(Math.fround(peak / high), 2 ** -126);
}

/** Share of values that a scale clips. */
export function clippedOf(rows: readonly Float64Array[], scale: number, high: number): number {
  let clipped = 0;
  let count = 0;
  for (const row of rows) {
    count += row.length;
    for (let i = 0; i < row.length; i++) if (Math.abs(row[i]) > (high + 0.5) * scale) clipped++;
  }
  return count === 0 ? 0 : clipped / count;
}

/** Scales of both factors' grids, and the largest code. */
export interface FactorGrid {
  readonly scaleA: number;
  readonly scaleB: number;
  readonly high: number;
}

export function quantizeRows({ a, b }: RankRows, { scaleA, scaleB, high }: FactorGrid): RankRows {
  return {
    a: a.map((row) => quantizeRow(row, scaleA, high)),
    b: b.map((row) => quantizeRow(row, scaleB, high)),
  };
}

/**
 * Relative distance of two products, `||approximate - exact||_F / ||exact||_F`, whatever gauge and rank either has; 0 where
 * both are zero. Distances under 1e-8 drown in the rounding of double precision.
 */
export function relativeDistance(approximate: RankRows, exact: RankRows): number {
  const negated = exact.b.map((row) => {
    const result = new Float64Array(row.length);
    for (let i = 0; i < row.length; i++) result[i] = -row[i];
    return result;
  });
  const difference = squaredProductNorm([...approximate.a, ...exact.a], [...approximate.b, ...negated]);
  return difference === 0 ? 0 : Math.sqrt(difference / squaredProductNorm(exact.a, exact.b));
}

/**
 * Squared error that a gauge is likely to have, times a constant, in time linear in the factors' size: the squared error of either side
 * times the other side's norm, as if it pointed everywhere equally. Good where ranks are rotated into each other.
 */
export function estimateError(rows: RankRows, grid: FactorGrid): number {
  const errorOf = (side: readonly Float64Array[], scale: number) =>
    side.reduce((sum, row) => {
      const quantized = quantizeRow(row, scale, grid.high);
      for (let i = 0; i < row.length; i++) sum += (quantized[i] - row[i]) ** 2;
      return sum;
    }, 0);
  return errorOf(rows.a, grid.scaleA) * squaredNorm(rows.b) + errorOf(rows.b, grid.scaleB) * squaredNorm(rows.a);
}
