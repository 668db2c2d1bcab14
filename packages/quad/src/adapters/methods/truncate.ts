import { combine, dot, jacobiSvd, orthonormalize, type RankRows, squaredProductNorm } from "../../alignment/rows.ts";
import type { Matrix, Product } from "./matrices.ts";
import type { LayerFactors } from "./method.ts";

/** What may be left out where a product has to be shortened at all: a shorter one within it is taken. */
const negligible = 1e-3;

/** A product as the layer's factors: as it is up to a rank, beyond it the nearest of lower rank (Eckart, Young 1936). */
export function lowRank({ up, down }: Product, scale: number, maximumRank: number): LayerFactors {
  const rank = up.columns;
  if (rank <= maximumRank) return { rank, down: down.values, up: up.values.map((value) => value * scale) };
  const rows = { a: columnsOf(up), b: rowsOf(down) };
  const total = squaredProductNorm(rows.a, rows.b);
  return truncated(singularTriplets(rows, maximumRank), [up.rows, down.columns], total, scale, maximumRank);
}

/**
 * A Kronecker product as the layer's factors. Where its rank, the product of both sides', is too large, its singular values
 * are the products of theirs, and so are the vectors: the largest products are kept.
 */
export function kroneckerLowRank(first: Product, second: Product, scale: number, maximumRank: number): LayerFactors {
  const rank = first.up.columns * second.up.columns;
  if (rank <= maximumRank)
    return {
      rank,
      up: kronecker(first.up, second.up).map((value) => value * scale),
      down: kronecker(first.down, second.down),
    };
  const sides = [first, second].map(({ up, down }) => ({ a: columnsOf(up), b: rowsOf(down) }));
  const total = sides.map(({ a, b }) => squaredProductNorm(a, b)).reduce((a, b) => a * b);
  const [outer, inner] = sides.map((rows) => singularTriplets(rows, maximumRank));
  const pairs = outer
    .flatMap((x) => inner.map((y) => ({ x, y, value: x.value * y.value })))
    .sort((p, q) => q.value - p.value)
    .slice(0, maximumRank)
    .map(({ x, y, value }) => ({ value, left: outerProduct(x.left, y.left), right: outerProduct(x.right, y.right) }));
  const sizes = [first.up.rows * second.up.rows, first.down.columns * second.down.columns] as const;
  return truncated(pairs, sizes, total, scale, maximumRank);
}

/** One term `value left right^T` of a singular value decomposition; the vectors have unit length. */
interface Triplet {
  readonly value: number;
  readonly left: Float64Array;
  readonly right: Float64Array;
}

/** As few of the leading terms as leave out next to nothing, at most as many as allowed; both factors get the values' roots. */
function truncated(
  triplets: readonly Triplet[],
  sizes: readonly [outputs: number, inputs: number],
  total: number,
  scale: number,
  maximumRank: number,
): LayerFactors {
  if (total === 0) return { rank: 1, up: new Float32Array(sizes[0]), down: new Float32Array(sizes[1]) };
  let rest = total;
  let rank = 0;
  while (rank < Math.min(maximumRank, triplets.length) && rest > negligible ** 2 * total)
    rest -= triplets[rank++].value ** 2;
  const kept = triplets.slice(0, rank);
  const [outputs, inputs] = sizes;
  const up = new Float32Array(outputs * kept.length);
  const down = new Float32Array(kept.length * inputs);
  for (const [k, { value, left, right }] of kept.entries()) {
    const root = Math.sqrt(value);
    for (let o = 0; o < outputs; o++) up[o * kept.length + k] = left[o] * root * scale;
    for (let i = 0; i < inputs; i++) down[k * inputs + i] = right[i] * root;
  }
  return { rank: kept.length, up, down, error: Math.sqrt(Math.max(0, rest) / total) };
}

/** Inner sizes up to which the decomposition is computed directly: its cost grows with their cube. */
const directSize = 320;

/** The leading terms of a product's singular value decomposition, largest first. */
function singularTriplets(rows: RankRows, count: number): Triplet[] {
  const inner = rows.a.length;
  return decompose(inner <= Math.max(directSize, count + 1) ? rows : sketched(rows, count + 32)).slice(0, count);
}

/** Bases of both sides by Gram-Schmidt, and the decomposition of the small matrix between them. */
function decompose({ a, b }: RankRows): Triplet[] {
  const left = orthonormalize(a);
  const right = orthonormalize(b);
  const core = right.triangle.map((row) => {
    const column = new Float64Array(a.length);
    for (let i = 0; i < a.length; i++) column[i] = dot(left.triangle[i], row);
    return column;
  });
  const svd = jacobiSvd(core);
  const values = svd.left.map((column) => Math.sqrt(dot(column, column)));
  const order = values.map((_, m) => m).filter((m) => values[m] > 0);
  order.sort((p, q) => values[q] - values[p]);
  return order.map((m) => ({
    value: values[m],
    left: combine(left.basis, 1, (i) => svd.left[m][i] / values[m])[0],
    right: combine(right.basis, 1, (l) => svd.right[m][l])[0],
  }));
}

/**
 * A product of fewer rows with the same leading terms: the matrix restricted to the range of its product with random vectors,
 * sharpened by two multiplications with it and its transpose (Halko, Martinsson, Tropp 2011, algorithm 4.4).
 */
function sketched({ a, b }: RankRows, size: number): RankRows {
  let state = 0x2545f491;
  const sign = () => {
    // Xorshift32 (Marsaglia 2003), so that results repeat.
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state & 1 ? 1 : -1;
  };
  const times = (x: readonly Float64Array[], y: readonly Float64Array[], vectors: readonly Float64Array[]) => {
    const weights = vectors.map((vector) => Float64Array.from(y, (row) => dot(row, vector)));
    return combine(x, vectors.length, (k, j) => weights[j][k]);
  };
  const start = Array.from({ length: size }, () => Float64Array.from(b[0], sign));
  let basis = orthonormalize(times(a, b, start)).basis;
  for (let pass = 0; pass < 2; pass++) basis = orthonormalize(times(a, b, times(b, a, basis))).basis;
  return { a: basis, b: times(b, a, basis) };
}

function rowsOf({ rows, columns, values }: Matrix): Float64Array[] {
  return Array.from({ length: rows }, (_, i) => Float64Array.from(values.subarray(i * columns, (i + 1) * columns)));
}

function columnsOf({ rows, columns, values }: Matrix): Float64Array[] {
  return Array.from({ length: columns }, (_, j) =>
    Float64Array.from({ length: rows }, (_, i) => values[i * columns + j]),
  );
}

/** Entries `x[i] y[j]`, in the order of a Kronecker product's rows. */
function outerProduct(x: Float64Array, y: Float64Array): Float64Array {
  const result = new Float64Array(x.length * y.length);
  for (let i = 0; i < x.length; i++) for (let j = 0; j < y.length; j++) result[i * y.length + j] = x[i] * y[j];
  return result;
}

function kronecker(first: Matrix, second: Matrix): Float32Array {
  const columns = first.columns * second.columns;
  const result = new Float32Array(first.values.length * second.values.length);
  for (let i = 0; i < first.rows; i++)
    for (let k = 0; k < first.columns; k++)
      for (let p = 0; p < second.rows; p++)
        for (let m = 0; m < second.columns; m++)
          result[(i * second.rows + p) * columns + k * second.columns + m] =
            first.values[i * first.columns + k] * second.values[p * second.columns + m];
  return result;
}
