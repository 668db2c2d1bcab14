import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { toRows } from "../alignment/rows.ts";
import {
  copyRanks,
  type FactorShape,
  factorDims,
  fileToGraph,
  graphToFile,
  graphToMatrices,
  matricesToGraph,
  padRank,
  valuesPerRank,
} from "./slot-layout.ts";

interface Layout {
  name: string;
  shapeA: FactorShape;
  shapeB: FactorShape;
}

const size = fc.integer({ min: 1, max: 5 });

/** Kinds of layers, and both ends of the rank for each factor, whether or not a kind has them today. */
const layouts = fc.oneof(
  fc.record({ inputs: size, outputs: size }).map(({ inputs, outputs }): Layout => {
    return { name: "linear", shapeA: [inputs, "rank"], shapeB: ["rank", outputs] };
  }),
  fc.record({ inputs: size, outputs: size, height: size, width: size }).map((sizes): Layout => {
    const { inputs, outputs, height, width } = sizes;
    return { name: "conv", shapeA: ["rank", inputs, height, width], shapeB: [outputs, "rank", 1, 1] };
  }),
  fc.record({ words: size, width: size }).map(({ words, width }): Layout => {
    return { name: "embedding", shapeA: ["rank", words], shapeB: [width, "rank"] };
  }),
  fc.record({ inputs: size, outputs: size, kernel: size }).map(({ inputs, outputs, kernel }): Layout => {
    return { name: "one dimension", shapeA: [inputs, kernel, "rank", 1], shapeB: ["rank", outputs, 1] };
  }),
);

/** Different numbers, so that no two elements can be exchanged unseen. */
const numbered = (length: number, from = 1) => Float32Array.from({ length }, (_, index) => from + index);

const cases = fc.record({ layout: layouts, rank: size, more: fc.integer({ min: 0, max: 3 }) });
const seeded = { seed: 41, numRuns: 300 };

/** The element of a factor in graph layout for a rank and a position on all other axes, counted row by row. */
function elementOf(
  values: Float32Array,
  shape: FactorShape,
  rank: number,
  at: { rank: number; other: number },
): number {
  const dims = factorDims(shape, rank);
  let rest = at.other;
  let offset = 0;
  let stride = 1;
  for (let axis = dims.length - 1; axis >= 0; axis--) {
    const index = shape[axis] === "rank" ? at.rank : rest % dims[axis];
    if (shape[axis] !== "rank") rest = Math.floor(rest / dims[axis]);
    offset += index * stride;
    stride *= dims[axis];
  }
  return values[offset];
}

function factorsFor({ shapeA, shapeB }: Layout, rank: number) {
  const [inputs, outputs] = [valuesPerRank(shapeA), valuesPerRank(shapeB)];
  return { inputs, outputs, a: numbered(rank * inputs), b: numbered(rank * outputs, 1000) };
}

describe("a slot's factors", () => {
  test("have in matrices and files the elements that the graph's shape puts there; added ranks are 0", () => {
    fc.assert(
      fc.property(cases, ({ layout, rank, more }) => {
        const { inputs, outputs, a, b } = factorsFor(layout, rank);
        const wanted = rank + more;
        const { A, B, ...sizes } = graphToMatrices(layout, { a, b }, rank, wanted);
        const { down, up } = graphToFile(layout, { a, b }, rank);
        expect(sizes).toEqual({ inFeatures: inputs, rank: wanted, outFeatures: outputs });
        for (let at = 0; at < wanted; at++) {
          for (let input = 0; input < inputs; input++) {
            const expected = at < rank ? elementOf(a, layout.shapeA, rank, { rank: at, other: input }) : 0;
            expect(A[input * wanted + at]).toBe(expected);
            if (at < rank) expect(down[at * inputs + input]).toBe(expected);
          }
          for (let output = 0; output < outputs; output++) {
            const expected = at < rank ? elementOf(b, layout.shapeB, rank, { rank: at, other: output }) : 0;
            expect(B[at * outputs + output]).toBe(expected);
            if (at < rank) expect(up[output * rank + at]).toBe(expected);
          }
        }
      }),
      seeded,
    );
  });

  test("come back from matrices and from files as they were, padded or not", () => {
    fc.assert(
      fc.property(cases, ({ layout, rank, more }) => {
        const { a, b } = factorsFor(layout, rank);
        const wanted = rank + more;
        const padded = {
          a: padRank(a, layout.shapeA, rank, wanted),
          b: padRank(b, layout.shapeB, rank, wanted),
        };
        expect(matricesToGraph(layout, graphToMatrices(layout, { a, b }, rank, wanted))).toEqual(padded);
        expect(fileToGraph(layout, graphToFile(layout, { a, b }, rank), wanted)).toEqual(padded);
      }),
      seeded,
    );
  });

  test("keep their product when ranks are added", () => {
    fc.assert(
      fc.property(cases, ({ layout, rank, more }) => {
        const { a, b } = factorsFor(layout, rank);
        const product = (wanted: number) => {
          const matrices = graphToMatrices(layout, { a, b }, rank, wanted);
          const rows = toRows(matrices);
          const sum = new Float64Array(matrices.inFeatures * matrices.outFeatures);
          for (let at = 0; at < rows.a.length; at++) {
            for (let i = 0; i < matrices.inFeatures; i++) {
              for (let o = 0; o < matrices.outFeatures; o++) {
                sum[i * matrices.outFeatures + o] += rows.a[at][i] * rows.b[at][o];
              }
            }
          }
          return sum;
        };
        expect(product(rank + more)).toEqual(product(rank));
      }),
      seeded,
    );
  });

  test("of a smaller rank take the first ranks of a larger one, whose others stay", () => {
    fc.assert(
      fc.property(cases, ({ layout, rank, more }) => {
        const wanted = rank + more;
        const { shapeA: shape } = layout;
        const values = numbered(rank * valuesPerRank(shape));
        const target = numbered(wanted * valuesPerRank(shape), 5000);
        const before = target.slice();
        copyRanks(values, rank, target, wanted, shape);
        for (let at = 0; at < wanted; at++) {
          for (let other = 0; other < valuesPerRank(shape); other++) {
            const expected = at < rank ? elementOf(values, shape, rank, { rank: at, other }) : undefined;
            expect(elementOf(target, shape, wanted, { rank: at, other })).toBe(
              expected ?? elementOf(before, shape, wanted, { rank: at, other }),
            );
          }
        }
      }),
      seeded,
    );
  });

  test("keep their element type when integers are padded", () => {
    expect(padRank(Int8Array.of(1, 2, 3, 4), [2, "rank"], 2, 3)).toEqual(Int8Array.of(1, 2, 0, 3, 4, 0));
    expect(padRank(Int16Array.of(1, 2), ["rank", 2], 1, 2)).toEqual(Int16Array.of(1, 2, 0, 0));
  });

  test("are refused when the rank is an axis in between", () => {
    const slot: Layout = { name: "odd", shapeA: [2, "rank", 2], shapeB: ["rank", 3] };
    const run = () => graphToMatrices(slot, { a: numbered(4), b: numbered(3) }, 1);
    expect(run).toThrow(InputError);
    expect(run).toThrow(/odd\.shapeA/);
  });
});
