/**
 * Eigenvalues of a real symmetric matrix, ascending: Householder reduction to tridiagonal form, then implicit QL
 * with Wilkinson's shift (Golub, Van Loan, Matrix Computations, 8.3). About 4/3 n^3 operations.
 *
 * @param matrix - `[n, n]` row-major; only the lower triangle is read.
 */
export function symmetricEigenvalues(matrix: Float64Array, n: number): Float64Array {
  const { diagonal, offDiagonal } = tridiagonalize(matrix.slice(), n);
  diagonalize(diagonal, offDiagonal);
  return diagonal.sort();
}

/** `offDiagonal[i]` couples i and i + 1. Reflects away the last row's entries, then the row above, and so on. */
function tridiagonalize(a: Float64Array, n: number): { diagonal: Float64Array; offDiagonal: Float64Array } {
  const offDiagonal = new Float64Array(n);
  const product = new Float64Array(n);
  for (let last = n - 1; last > 0; last--) {
    const row = a.subarray(last * n, last * n + last);
    const pivot = row[last - 1];
    let scale = 0;
    for (let i = 0; i < last - 1; i++) scale = Math.max(scale, Math.abs(row[i]));
    if (scale === 0) {
      offDiagonal[last - 1] = pivot;
      continue;
    }
    const norm = scaledNorm(row, Math.max(scale, Math.abs(pivot)));
    const alpha = pivot > 0 ? -norm : norm;
    offDiagonal[last - 1] = alpha;
    row[last - 1] = pivot - alpha; // the row now holds the reflector v, H = I - v v^T / half
    const half = norm * (norm + Math.abs(pivot)); // v^T v / 2
    // p = A v / half with the symmetric A given by its lower triangle, walked row by row.
    product.fill(0, 0, last);
    for (let i = 0; i < last; i++) {
      const base = i * n;
      const vi = row[i];
      let sum = a[base + i] * vi;
      for (let j = 0; j < i; j++) {
        const value = a[base + j];
        sum += value * row[j];
        product[j] += value * vi;
      }
      product[i] += sum;
    }
    let inner = 0;
    for (let i = 0; i < last; i++) inner += (product[i] /= half) * row[i];
    const correction = inner / (2 * half);
    for (let i = 0; i < last; i++) product[i] -= correction * row[i];
    // A <- A - v q^T - q v^T
    for (let i = 0; i < last; i++) {
      const base = i * n;
      const vi = row[i];
      const qi = product[i];
      for (let j = 0; j <= i; j++) a[base + j] -= vi * product[j] + qi * row[j];
    }
  }
  return { diagonal: Float64Array.from({ length: n }, (_, i) => a[i * n + i]), offDiagonal };
}

function scaledNorm(values: Float64Array, scale: number): number {
  let sum = 0;
  for (const value of values) sum += (value / scale) ** 2;
  return scale * Math.sqrt(sum);
}

/** Implicit QL: chases the bulge of each shifted step upwards until every coupling is negligible. */
function diagonalize(d: Float64Array, e: Float64Array): void {
  const n = d.length;
  for (let start = 0; start < n; start++) {
    for (let iteration = 0; ; iteration++) {
      let end = start;
      while (end < n - 1 && Math.abs(e[end]) > Number.EPSILON * (Math.abs(d[end]) + Math.abs(d[end + 1]))) end++;
      if (end === start) break;
      if (iteration === 100) throw new Error("the eigenvalue iteration did not converge: the matrix is not finite");
      let g = (d[start + 1] - d[start]) / (2 * e[start]);
      const root = Math.hypot(g, 1);
      g = d[end] - d[start] + e[start] / (g + (g >= 0 ? root : -root));
      let sine = 1;
      let cosine = 1;
      let shift = 0;
      let i = end - 1;
      for (; i >= start; i--) {
        const f = sine * e[i];
        const b = cosine * e[i];
        const r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1] -= shift;
          e[end] = 0;
          break;
        }
        sine = f / r;
        cosine = g / r;
        g = d[i + 1] - shift;
        const t = (d[i] - g) * sine + 2 * cosine * b;
        shift = sine * t;
        d[i + 1] = g + shift;
        g = cosine * t - b;
      }
      if (i >= start) continue;
      d[start] -= shift;
      e[start] = g;
      e[end] = 0;
    }
  }
}

/**
 * Factor of a positive semidefinite matrix: the rows of F with `F^T F = matrix`, as many as its numerical rank.
 * Cholesky with diagonal pivoting, which stops at the first pivot that is rounding noise, so singular matrices pass.
 *
 * @param matrix - `[n, n]` row-major, symmetric.
 * @returns `[rank, n]` row-major; null when the matrix has a clearly negative direction.
 */
export function semidefiniteFactor(matrix: Float64Array, n: number): { rows: Float64Array; rank: number } | null {
  const remaining = Float64Array.from({ length: n }, (_, i) => matrix[i * n + i]);
  const tolerance = n * Number.EPSILON * remaining.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const rows = new Float64Array(n * n);
  let rank = 0;
  for (; rank < n; rank++) {
    const pivot = remaining.reduce((best, value, i) => (value > remaining[best] ? i : best), 0);
    if (remaining[pivot] <= tolerance) break;
    const row = rows.subarray(rank * n, (rank + 1) * n);
    for (let j = 0; j < n; j++) row[j] = matrix[pivot * n + j];
    for (let k = 0; k < rank; k++) {
      const base = k * n;
      const factor = rows[base + pivot];
      if (factor !== 0) for (let j = 0; j < n; j++) row[j] -= factor * rows[base + j];
    }
    const scale = 1 / Math.sqrt(remaining[pivot]);
    for (let j = 0; j < n; j++) remaining[j] -= (row[j] *= scale) ** 2;
    remaining[pivot] = 0;
  }
  const limit = 1e-6 * (tolerance / (n * Number.EPSILON));
  if (remaining.some((value) => value < -limit)) return null;
  return { rows: rows.subarray(0, rank * n), rank };
}
