/**
 * `A B^T` of two row-major matrices `[rowsA, length]` and `[rowsB, length]`, in 64-bit floats, as `[rowsA, rowsB]`.
 * With `A = B` it is the Gram matrix of the rows.
 */
export function multiplyByTransposed(
  a: Float64Array,
  rowsA: number,
  b: Float64Array,
  rowsB: number,
  length: number,
): Float64Array {
  const out = new Float64Array(rowsA * rowsB);
  const symmetric = a === b && rowsA === rowsB;
  // Strips of the inner dimension keep one block of rows of B in the cache while all rows of A pass by.
  const strip = 512;
  for (let start = 0; start < length; start += strip) {
    const end = Math.min(start + strip, length);
    for (let j = 0; j < rowsB; j += 4)
      for (let i = symmetric ? j : 0; i < rowsA; i += 2)
        if (i + 1 < rowsA && j + 3 < rowsB) addBlock(out, a, i, b, j, rowsB, length, start, end);
        else addRest(out, a, i, Math.min(i + 2, rowsA), b, j, Math.min(j + 4, rowsB), rowsB, length, start, end);
  }
  if (symmetric)
    for (let i = 0; i < rowsA; i++) for (let j = i + 1; j < rowsA; j++) out[i * rowsA + j] = out[j * rowsA + i];
  return out;
}

/** `[rows, columns]` row-major to `[columns, rows]`. */
export function transpose(matrix: Float64Array, rows: number, columns: number): Float64Array {
  const out = new Float64Array(matrix.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = matrix[i * columns + j];
  return out;
}

/** Two rows of A by four of B: eight independent sums hide the latency of the additions. */
function addBlock(
  out: Float64Array,
  a: Float64Array,
  i: number,
  b: Float64Array,
  j: number,
  stride: number,
  length: number,
  start: number,
  end: number,
): void {
  const [a0, a1] = [i * length, (i + 1) * length];
  const [b0, b1, b2, b3] = [j * length, (j + 1) * length, (j + 2) * length, (j + 3) * length];
  let [s00, s01, s02, s03, s10, s11, s12, s13] = [0, 0, 0, 0, 0, 0, 0, 0];
  for (let k = start; k < end; k++) {
    const x0 = a[a0 + k];
    const x1 = a[a1 + k];
    const y0 = b[b0 + k];
    const y1 = b[b1 + k];
    const y2 = b[b2 + k];
    const y3 = b[b3 + k];
    s00 += x0 * y0;
    s01 += x0 * y1;
    s02 += x0 * y2;
    s03 += x0 * y3;
    s10 += x1 * y0;
    s11 += x1 * y1;
    s12 += x1 * y2;
    s13 += x1 * y3;
  }
  const top = i * stride + j;
  const bottom = top + stride;
  out[top] += s00;
  out[top + 1] += s01;
  out[top + 2] += s02;
  out[top + 3] += s03;
  out[bottom] += s10;
  out[bottom + 1] += s11;
  out[bottom + 2] += s12;
  out[bottom + 3] += s13;
}

function addRest(
  out: Float64Array,
  a: Float64Array,
  i: number,
  endI: number,
  b: Float64Array,
  j: number,
  endJ: number,
  stride: number,
  length: number,
  start: number,
  end: number,
): void {
  for (let row = i; row < endI; row++)
    for (let column = j; column < endJ; column++) {
      let sum = 0;
      for (let k = start; k < end; k++) sum += a[row * length + k] * b[column * length + k];
      out[row * stride + column] += sum;
    }
}
