/** How much of a product `A B` is lost when both factors are quantized to symmetric per-tensor grids. */
import { type BitWidth, gridLimits } from "../quantization/encoding.ts";
import { contract, gramOf, peakOf, products, type RankRows, squaredNorm, squaredProductNorm } from "./rows.ts";

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
  const [a, b] = (["a", "b"] as const).map((side) => againstExact(approximate[side], exact[side]));
  return distanceFrom(a, b, exact);
}

/** What a distance needs to know of one side of a product. */
export interface SideProducts {
  /** `[rank, rank]`: of the approximate rows with each other. */
  readonly own: readonly Float64Array[];
  /** `[rank, exact rank]`: of the approximate rows with the exact ones. */
  readonly cross: readonly Float64Array[];
}

export function againstExact(approximate: readonly Float64Array[], exact: readonly Float64Array[]): SideProducts {
  return { own: gramOf(approximate), cross: products(approximate, exact) };
}

/** As `relativeDistance`, from the products of both sides: `||P - E||^2 = ||P||^2 - 2 <P, E> + ||E||^2`. */
export function distanceFrom(a: SideProducts, b: SideProducts, exact: RankRows): number {
  const norm = knownNorms.get(exact) ?? squaredProductNorm(exact.a, exact.b);
  knownNorms.set(exact, norm);
  const difference = contract(a.own, b.own) - 2 * contract(a.cross, b.cross) + norm;
  return difference <= 0 ? 0 : Math.sqrt(difference / norm);
}

/** Many candidates are compared with the same product. */
const knownNorms = new WeakMap<RankRows, number>();

/**
 * Squared error that a gauge is likely to have, times a constant, in time linear in the factors' size: the squared error of either side
 * times the other side's norm, as if it pointed everywhere equally. Good where ranks are rotated into each other.
 * @param shift - factor on A, and divisor of B, before they are rounded
 */
export function estimateError({ a, b }: RankRows, { scaleA, scaleB, high }: FactorGrid, shift = 1): number {
  // Norms and errors are those after the shift.
  const errorA = squaredRounding(a, shift / scaleA, high) * scaleA ** 2;
  const errorB = squaredRounding(b, 1 / (shift * scaleB), high) * scaleB ** 2;
  return (errorA * squaredNorm(b)) / shift ** 2 + errorB * squaredNorm(a) * shift ** 2;
}

/** Sum of the squared differences of values to the grid, in units of its step. */
function squaredRounding(rows: readonly Float64Array[], stepsPerUnit: number, high: number): number {
  let sum = 0;
  for (const row of rows) {
    for (let i = 0; i < row.length; i++) {
      const position = row[i] * stepsPerUnit;
      // Rounds to the nearest integer: see the constant of the same use in codes.ts.
      const nearest = position + 6755399441055744 - 6755399441055744;
      const lost = position - (nearest > high ? high : nearest < -high ? -high : nearest);
      sum += lost * lost;
    }
  }
  return sum;
}
