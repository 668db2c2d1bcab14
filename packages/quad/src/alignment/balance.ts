/** Per-rank scaling: column k of A times c, row k of B divided by c leaves `A B` as it is. */
import type { FactorGrid } from "./product-error.ts";
import { dot, largest, peakOf, type RankRows, sumOf } from "./rows.ts";

interface RankSizes {
  peakA: number;
  peakB: number;
  squaredA: number;
  squaredB: number;
}

function sizesOf({ a, b }: RankRows): RankSizes[] {
  return a.map((row, k) => ({
    peakA: peakOf(row),
    peakB: peakOf(b[k]),
    squaredA: dot(row, row),
    squaredB: dot(b[k], b[k]),
  }));
}

/** A rank that contributes nothing, such as one of an untrained B, must not widen the other side's grid. */
function isIdle({ peakA, peakB }: RankSizes): boolean {
  return peakA === 0 || peakB === 0;
}

/**
 * The factor for each rank with the least expected error on given grids. Rounding adds `scaleA^2 / 12` to every element of
 * A and the like to B, so the product's squared error is
 * `in scaleA^2 / 12 sum ||b_k||^2 / c_k^2 + out scaleB^2 / 12 sum c_k^2 ||a_k||^2`, least at
 * `c_k^4 = in scaleA^2 ||b_k||^2 / (out scaleB^2 ||a_k||^2)`; c is then moved to where neither side clips, or where both
 * clip alike.
 */
function factorsFor(sizes: readonly RankSizes[], inFeatures: number, outFeatures: number, grid: FactorGrid): number[] {
  return sizes.map((size) => {
    if (isIdle(size)) return 0;
    const { peakA, peakB, squaredA, squaredB } = size;
    const ideal = Math.sqrt(
      (grid.scaleA / grid.scaleB) * Math.sqrt((inFeatures * squaredB) / (outFeatures * squaredA)),
    );
    const most = (grid.high * grid.scaleA) / peakA;
    const least = peakB / (grid.high * grid.scaleB);
    if (least > most) return Math.sqrt(least * most);
    return Math.min(most, Math.max(least, ideal));
  });
}

function scaled({ a, b }: RankRows, factors: readonly number[]): RankRows {
  // Loops: typed arrays' own `map` takes several times as long, and this runs for every step of a search.
  const times = (row: Float64Array, factor: number) => {
    const result = new Float64Array(row.length);
    for (let i = 0; i < row.length; i++) result[i] = row[i] * factor;
    return result;
  };
  const over = (row: Float64Array, divisor: number) => {
    const result = new Float64Array(row.length);
    if (divisor !== 0) for (let i = 0; i < row.length; i++) result[i] = row[i] / divisor;
    return result;
  };
  return { a: a.map((row, k) => times(row, factors[k])), b: b.map((row, k) => over(row, factors[k])) };
}

/** Ratios of the product of both grids' scales to the smallest one that clips nothing. */
const widths = Array.from({ length: 25 }, (_, i) => 1.06 ** i);

/**
 * Balances the ranks against each other for given grids, or, without any, for the grids that their peaks will define.
 * Permuting ranks is also free, but changes nothing where a tensor has one scale.
 */
export function balanceRows(rows: RankRows, grid: FactorGrid | { high: number }): RankRows {
  const inFeatures = rows.a[0]?.length ?? 0;
  const outFeatures = rows.b[0]?.length ?? 0;
  const sizes = sizesOf(rows);
  if ("scaleA" in grid) return scaled(rows, factorsFor(sizes, inFeatures, outFeatures, grid));
  // One overall factor moves freely between the sides, so only the product of the scales matters: A's is set to 1.
  const tightest = largest(sizes.map(({ peakA, peakB }) => (peakA * peakB) / grid.high ** 2));
  if (tightest === 0)
    return scaled(
      rows,
      sizes.map(() => 0),
    );
  let best: number[] = [];
  let least = Number.POSITIVE_INFINITY;
  for (const width of widths) {
    const scaleB = tightest * width;
    const factors = factorsFor(sizes, inFeatures, outFeatures, { scaleA: 1, scaleB, high: grid.high });
    const error = sumOf(
      sizes.map(({ squaredA, squaredB }, k) =>
        factors[k] === 0
          ? 0
          : (inFeatures * squaredB) / factors[k] ** 2 + outFeatures * scaleB ** 2 * factors[k] ** 2 * squaredA,
      ),
    );
    if (error >= least) continue;
    least = error;
    best = factors;
  }
  return scaled(rows, best);
}

/** Multiplies A by a factor and divides B by it. */
export function shiftScale(rows: RankRows, factor: number): RankRows {
  return scaled(
    rows,
    rows.a.map(() => factor),
  );
}
