import { expect, test } from "vitest";
import { multiplyByTransposed, transpose } from "./matrix-product.ts";
import { seededNormal } from "./testing.ts";

const random = (length: number, seed: number) => {
  const normal = seededNormal(seed);
  return Float64Array.from({ length }, () => normal());
};

const direct = (a: Float64Array, rowsA: number, b: Float64Array, rowsB: number, length: number) =>
  Float64Array.from({ length: rowsA * rowsB }, (_, index) => {
    const [i, j] = [Math.floor(index / rowsB), index % rowsB];
    let sum = 0;
    for (let k = 0; k < length; k++) sum += a[i * length + k] * b[j * length + k];
    return sum;
  });

const largestDifference = (a: Float64Array, b: Float64Array) =>
  a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

test.each([
  [1, 1, 1],
  [2, 4, 7],
  [5, 3, 513],
  [7, 9, 1030],
  [16, 10, 512],
])("rows of %i by %i, length %i", (rowsA, rowsB, length) => {
  const a = random(rowsA * length, 1);
  const b = random(rowsB * length, 2);
  const product = multiplyByTransposed(a, rowsA, b, rowsB, length);
  expect(largestDifference(product, direct(a, rowsA, b, rowsB, length))).toBeLessThan(1e-11);
});

test.each([1, 3, 4, 5, 10, 13])("the Gram matrix of %i rows is whole and symmetric", (rows) => {
  const a = random(rows * 600, 3);
  const gram = multiplyByTransposed(a, rows, a, rows, 600);
  expect(largestDifference(gram, direct(a, rows, a, rows, 600))).toBeLessThan(1e-11);
  expect(transpose(gram, rows, rows)).toEqual(gram);
});

test("transposing moves [i, j] to [j, i]", () => {
  expect([...transpose(Float64Array.from([1, 2, 3, 4, 5, 6]), 2, 3)]).toEqual([1, 4, 2, 5, 3, 6]);
});
