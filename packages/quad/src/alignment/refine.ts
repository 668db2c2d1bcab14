/** Rounding that knows of the other factor: each side is re-solved for what the other lost. */
import {
  againstExact,
  distanceFrom,
  type FactorGrid,
  quantizeRow,
  quantizeRows,
  type SideProducts,
} from "./product-error.ts";
import { addCombination, combine, type RankRows } from "./rows.ts";

const rounds = 4;
/** A round that gains less than this share is the last. */
const smallestGain = 0.005;

/**
 * Factors on the grid whose product comes nearer to `exact` than rounding each side by itself: with A fixed, the best B
 * is a least squares problem over the integers of every column, solved by Babai's nearest plane method (1986; the same
 * as the error feedback of GPTQ, arXiv 2210.17323); then A with B fixed, and again. Never worse than plain rounding.
 * @param start - full-precision factors; `exact` or another gauge of it
 * @returns rows on the grid
 */
export function refineRows(start: RankRows, exact: RankRows, grid: FactorGrid): RankRows {
  let best = quantizeRows(start, grid);
  const products = { a: againstExact(best.a, exact.a), b: againstExact(best.b, exact.b) };
  let least = distanceFrom(products.a, products.b, exact);
  let current = best;
  for (let round = 0; round < rounds; round++) {
    const before = least;
    for (const side of ["b", "a"] as const) {
      const [fixed, scale] = side === "b" ? [products.a, grid.scaleB] : [products.b, grid.scaleA];
      const nearest = nearestRows(fixed, exact[side], scale, grid.high);
      current = side === "b" ? { a: current.a, b: nearest } : { a: nearest, b: current.b };
      products[side] = againstExact(nearest, exact[side]);
      const error = distanceFrom(products.a, products.b, exact);
      if (error >= least) continue;
      least = error;
      best = current;
    }
    if (least > before * (1 - smallestGain)) break;
  }
  return best;
}

/**
 * Grid points `q` with `sum of fixed[k] q[k]^T` near `sum of exactFixed[k] exactFree[k]^T`. With `H = fixed fixed^T = R^T R`
 * and the real-valued solution w, the squared error is a constant plus `||R (q - w)||^2`: from the last rank to the
 * first, each is rounded at `w_k - sum over j > k of R_kj / R_kk (q_j - w_j)`.
 * @param products - of the fixed side
 */
function nearestRows(
  { own: gram, cross }: SideProducts,
  exactFree: readonly Float64Array[],
  scale: number,
  high: number,
): Float64Array[] {
  const rank = gram.length;
  // Keeps ranks that are zero, or depend on others, from being divided by zero.
  const ridge = 1e-10 * gram.reduce((most, row, k) => Math.max(most, row[k]), 0);
  if (ridge === 0) return exactFree.slice(0, rank).map((row) => new Float64Array(row.length));
  const upper = cholesky(gram, ridge);
  const weights = solve(upper, cross);
  const solution = combine(exactFree, rank, (k, m) => weights[m][k]);
  const result = new Array<Float64Array>(rank);
  // What rounding did to the ranks so far.
  const moved: Float64Array[] = [];
  for (let k = rank - 1; k >= 0; k--) {
    const target = solution[k].slice();
    addCombination(target, moved, (index) => -upper[k][rank - 1 - index] / upper[k][k]);
    result[k] = quantizeRow(target, scale, high);
    const difference = solution[k];
    for (let i = 0; i < difference.length; i++) difference[i] = result[k][i] - difference[i];
    moved.push(difference);
  }
  return result;
}

/** Upper triangular R with `R^T R = matrix + ridge I`. */
function cholesky(matrix: readonly Float64Array[], ridge: number): Float64Array[] {
  const n = matrix.length;
  const upper = matrix.map(() => new Float64Array(n));
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      let sum = matrix[i][j] + (i === j ? ridge : 0);
      for (let k = 0; k < i; k++) sum -= upper[k][i] * upper[k][j];
      upper[i][j] = i === j ? Math.sqrt(Math.max(sum, ridge)) : sum / upper[i][i];
    }
  }
  return upper;
}

/** Solves `R^T R x = right` for every column of `right`, given by rows. */
function solve(upper: readonly Float64Array[], right: readonly Float64Array[]): Float64Array[] {
  const x = right.map((row) => row.slice());
  const subtract = (target: Float64Array, source: Float64Array, factor: number) => {
    if (factor !== 0) for (let i = 0; i < target.length; i++) target[i] -= factor * source[i];
  };
  const divide = (target: Float64Array, divisor: number) => {
    for (let i = 0; i < target.length; i++) target[i] /= divisor;
  };
  for (let k = 0; k < x.length; k++) {
    for (let j = 0; j < k; j++) subtract(x[k], x[j], upper[j][k]);
    divide(x[k], upper[k][k]);
  }
  for (let k = x.length - 1; k >= 0; k--) {
    for (let j = k + 1; j < x.length; j++) subtract(x[k], x[j], upper[k][j]);
    divide(x[k], upper[k][k]);
  }
  return x;
}
