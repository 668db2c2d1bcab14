import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { concatenateAlong, sliceAlong } from "./arrays.ts";

const shape = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 });

/** Values that name their own position, so that a wrong move shows. */
function numbered(dims: readonly number[], first = 1): Float32Array {
  const length = dims.reduce((product, size) => product * size, 1);
  return Float32Array.from({ length }, (_, index) => first + index);
}

describe("concatenateAlong", () => {
  test("columns and rows of matrices", () => {
    const a = Float32Array.of(1, 2, 3, 4);
    const b = Float32Array.of(5, 6);
    expect([...concatenateAlong([a, b], [2, 0], 1)]).toEqual([1, 2, 5, 3, 4, 6]);
    expect([...concatenateAlong([a, b], [0, 2], 0)]).toEqual([1, 2, 3, 4, 5, 6]);
  });

  test("its first part is what slicing gives back", () => {
    fc.assert(
      fc.property(shape, fc.nat(3), fc.integer({ min: 1, max: 3 }), (dims, position, length) => {
        const axis = position % dims.length;
        const other = dims.with(axis, length);
        const joined = concatenateAlong([numbered(dims), numbered(other, 1000)], dims, axis);
        const total = dims.with(axis, dims[axis] + length);
        expect(joined.length).toBe(total.reduce((product, size) => product * size, 1));
        expect(sliceAlong(joined, total, axis, dims[axis])).toEqual(numbered(dims));
      }),
    );
  });
});

describe("sliceAlong", () => {
  test("padding adds zeros only, and cutting undoes it", () => {
    fc.assert(
      fc.property(shape, fc.nat(3), fc.nat(3), (dims, position, extra) => {
        const axis = position % dims.length;
        const padded = sliceAlong(numbered(dims), dims, axis, dims[axis] + extra);
        expect(padded.filter((value) => value !== 0)).toEqual(numbered(dims));
        expect(sliceAlong(padded, dims.with(axis, dims[axis] + extra), axis, dims[axis])).toEqual(numbered(dims));
      }),
    );
  });

  test("the same array when the size stays", () => {
    const values = numbered([2, 3]);
    expect(sliceAlong(values, [2, 3], 1, 3)).toBe(values);
  });
});
