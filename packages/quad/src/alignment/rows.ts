/** Low-rank factors in double precision, one row per rank for either side, and the linear algebra on them. */

/** The product is the sum over k of the outer products `a[k] b[k]^T`. */
export interface RankRows {
  /** Columns of A: `rank` rows of `inFeatures`. */
  readonly a: readonly Float64Array[];
  /** Rows of B: `rank` rows of `outFeatures`. */
  readonly b: readonly Float64Array[];
}

/** Factors of a low-rank change `A B` in the layout of an exposed graph's inputs. */
export interface Factors {
  /** `[inFeatures, rank]`, row-major. Convolutions: `inFeatures` counts input channels times kernel positions. */
  readonly A: Float32Array;
  /** `[rank, outFeatures]`, row-major. */
  readonly B: Float32Array;
  readonly inFeatures: number;
  readonly rank: number;
  readonly outFeatures: number;
}

/** @throws RangeError if the arrays do not have the lengths that the sizes say */
export function toRows({ A, B, inFeatures, rank, outFeatures }: Factors): RankRows {
  if (A.length !== inFeatures * rank || B.length !== rank * outFeatures)
    throw new RangeError(`A [${inFeatures}, ${rank}] has ${A.length} values, B [${rank}, ${outFeatures}] ${B.length}`);
  const a = Array.from({ length: rank }, () => new Float64Array(inFeatures));
  a.forEach((row, k) => {
    for (let i = 0; i < inFeatures; i++) row[i] = A[i * rank + k];
  });
  const b = a.map((_, k) => new Float64Array(B.subarray(k * outFeatures, (k + 1) * outFeatures)));
  return { a, b };
}

export function toFactors({ a, b }: RankRows, inFeatures: number, outFeatures: number): Factors {
  const rank = a.length;
  const A = new Float32Array(inFeatures * rank);
  const B = new Float32Array(rank * outFeatures);
  a.forEach((row, k) => {
    for (let i = 0; i < inFeatures; i++) A[i * rank + k] = row[i];
  });
  b.forEach((row, k) => {
    B.set(row, k * outFeatures);
  });
  return { A, B, inFeatures, rank, outFeatures };
}

export function dot(x: Float64Array, y: Float64Array): number {
  // Four sums: one would wait for every addition before the next.
  let [first, second, third, fourth] = [0, 0, 0, 0];
  const even = x.length - (x.length % 4);
  for (let i = 0; i < even; i += 4) {
    first += x[i] * y[i];
    second += x[i + 1] * y[i + 1];
    third += x[i + 2] * y[i + 2];
    fourth += x[i + 3] * y[i + 3];
  }
  for (let i = even; i < x.length; i++) first += x[i] * y[i];
  return first + second + third + fourth;
}

/** `[k][l] = x[k] . y[l]` */
export function products(x: readonly Float64Array[], y: readonly Float64Array[]): Float64Array[] {
  return x.map((row) => Float64Array.from(y, (other) => dot(row, other)));
}

/** `[k][l] = x[k] . x[l]` */
export function gramOf(x: readonly Float64Array[]): Float64Array[] {
  const gram = x.map(() => new Float64Array(x.length));
  for (let k = 0; k < x.length; k++) for (let l = 0; l <= k; l++) gram[k][l] = gram[l][k] = dot(x[k], x[l]);
  return gram;
}

/** Sum of the products of two matrices' entries. */
export function contract(x: readonly Float64Array[], y: readonly Float64Array[]): number {
  return sumOf(x.map((row, k) => dot(row, y[k])));
}

/** Largest magnitude in a row. */
export function peakOf(row: Float64Array): number {
  let peak = 0;
  for (let i = 0; i < row.length; i++) {
    const size = Math.abs(row[i]);
    if (size > peak) peak = size;
  }
  return peak;
}

export const largest = (values: readonly number[]): number => values.reduce((a, b) => Math.max(a, b), 0);
export const sumOf = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);

/** Squared Frobenius norm. */
export const squaredNorm = (rows: readonly Float64Array[]): number => sumOf(rows.map((row) => dot(row, row)));

/** `combined[m] = sum over k of weight(k, m) rows[k]`. */
export function combine(
  rows: readonly Float64Array[],
  count: number,
  weight: (k: number, m: number) => number,
): Float64Array[] {
  const length = rows[0]?.length ?? 0;
  return Array.from({ length: count }, (_, m) => {
    const result = new Float64Array(length);
    addCombination(result, rows, (k) => weight(k, m));
    return result;
  });
}

/** `target += sum over k of weight(k) rows[k]`, in place. */
export function addCombination(
  target: Float64Array,
  rows: readonly Float64Array[],
  weight: (k: number) => number,
): void {
  const terms = rows.map((row, k) => ({ row, factor: weight(k) })).filter(({ factor }) => factor !== 0);
  // Four rows at a time: half of the work is reading and writing the target.
  const even = terms.length - (terms.length % 4);
  for (let k = 0; k < even; k += 4) {
    const [{ row: w, factor: fw }, { row: x, factor: fx }, { row: y, factor: fy }, { row: z, factor: fz }] =
      terms.slice(k, k + 4);
    for (let i = 0; i < target.length; i++) target[i] += fw * w[i] + fx * x[i] + (fy * y[i] + fz * z[i]);
  }
  for (const { row, factor } of terms.slice(even)) for (let i = 0; i < target.length; i++) target[i] += factor * row[i];
}

/** Squared Frobenius norm of the sum of outer products `x[k] y[k]^T`, from the Gram matrices of both sides. */
export function squaredProductNorm(x: readonly Float64Array[], y: readonly Float64Array[]): number {
  // Rounding can take a sum that is zero below it.
  return Math.max(0, contract(gramOf(x), gramOf(y)));
}

/**
 * `rows[j] = sum over i <= j of triangle[i][j] basis[i]` with orthonormal basis rows, or zero ones where `rows[j]` depends
 * on those before it. Gram-Schmidt with every row orthogonalised twice (Giraud et al. 2005: twice is enough).
 */
export function orthonormalize(rows: readonly Float64Array[]): { basis: Float64Array[]; triangle: Float64Array[] } {
  const basis: Float64Array[] = [];
  const triangle = rows.map(() => new Float64Array(rows.length));
  rows.forEach((row, j) => {
    const rest = row.slice();
    const norm = Math.sqrt(dot(row, row));
    for (let pass = 0; pass < 2; pass++) {
      for (let i = 0; i < j; i++) {
        const share = dot(basis[i], rest);
        triangle[i][j] += share;
        for (let n = 0; n < rest.length; n++) rest[n] -= share * basis[i][n];
      }
    }
    const length = Math.sqrt(dot(rest, rest));
    const isDependent = length <= 1e-14 * norm;
    triangle[j][j] = isDependent ? 0 : length;
    if (isDependent) rest.fill(0);
    else for (let n = 0; n < rest.length; n++) rest[n] /= length;
    basis.push(rest);
  });
  return { basis, triangle };
}

/**
 * Singular value decomposition `matrix = sum over m of left[m] right[m]^T` of a small square matrix, by one-sided
 * Jacobi rotations (Golub, Van Loan, Matrix Computations, 8.6.3): `right` is orthonormal, `left` orthogonal with the
 * singular values as lengths.
 * @param columns - of the matrix
 */
export function jacobiSvd(columns: readonly Float64Array[]): { left: Float64Array[]; right: Float64Array[] } {
  const n = columns.length;
  const left = columns.map((column) => column.slice());
  const right = columns.map((_, k) => Float64Array.from({ length: n }, (_, i) => (i === k ? 1 : 0)));
  for (let sweep = 0, isDone = false; !isDone && sweep < 60; sweep++) {
    isDone = true;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        const pp = dot(left[p], left[p]);
        const qq = dot(left[q], left[q]);
        const pq = dot(left[p], left[q]);
        if (Math.abs(pq) <= 1e-15 * Math.sqrt(pp * qq) || pq === 0) continue;
        isDone = false;
        const zeta = (qq - pp) / (2 * pq);
        const tangent = (zeta >= 0 ? 1 : -1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const cosine = 1 / Math.sqrt(1 + tangent * tangent);
        rotatePair(left[p], left[q], cosine, cosine * tangent);
        rotatePair(right[p], right[q], cosine, cosine * tangent);
      }
    }
  }
  // matrix * right = left, so matrix = sum of left[m] (column m of right)^T.
  return { left, right };
}

/** `x, y <- cosine x - sine y, sine x + cosine y`, in place. */
export function rotatePair(x: Float64Array, y: Float64Array, cosine: number, sine: number): void {
  for (let i = 0; i < x.length; i++) {
    const value = x[i];
    x[i] = cosine * value - sine * y[i];
    y[i] = sine * value + cosine * y[i];
  }
}
