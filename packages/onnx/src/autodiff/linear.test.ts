import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { gradientError, type OperatorCase } from "../../../../test/helpers/finite-differences.ts";
import { floatAttribute } from "../ir/node.ts";

const tolerance = 1e-3;

test.each([
  { name: "vector by vector", a: [3], b: [3] },
  { name: "vector by matrix", a: [3], b: [3, 2] },
  { name: "matrix by vector", a: [2, 3], b: [3] },
  { name: "batch by vector", a: [4, 2, 3], b: [3] },
  { name: "vector by batch", a: [3], b: [4, 3, 2] },
  { name: "matrices", a: [2, 3], b: [3, 4] },
  { name: "batch by matrix", a: [2, 2, 3], b: [3, 4] },
  { name: "matrices, projected to few columns", a: [3, 9], b: [9, 2] },
  { name: "batch by matrix, projected to few columns", a: [2, 2, 8], b: [8, 1] },
  { name: "matrix by batch", a: [2, 3], b: [2, 3, 4] },
  { name: "batches", a: [2, 2, 3], b: [2, 3, 2] },
  { name: "broadcast batches", a: [2, 1, 2, 3], b: [3, 3, 2] },
])("MatMul of $name: gradients equal finite differences", async ({ a, b }) => {
  expect(await gradientError({ op: "MatMul", type: "float64", inputs: [{ dims: a }, { dims: b }] })).toBeLessThan(
    tolerance,
  );
});

test("Gemm: gradients equal finite differences for every form", async () => {
  const form = fc.record({
    transA: fc.boolean(),
    transB: fc.boolean(),
    alpha: fc.constantFrom(1, 0.7),
    beta: fc.constantFrom(1, -0.4),
    c: fc.constantFrom(null, [], [1], [4], [2, 1], [1, 4], [2, 4]),
    // Much longer than the result is wide: its gradient is computed the other way round.
    inner: fc.constantFrom(3, 17),
  });
  await fc.assert(
    fc.asyncProperty(form, async ({ transA, transB, alpha, beta, c, inner }) => {
      const inputs = [
        { dims: transA ? [inner, 2] : [2, inner] },
        { dims: transB ? [4, inner] : [inner, 4] },
        ...(c ? [{ dims: c }] : []),
      ];
      const attributes = {
        transA: Number(transA),
        transB: Number(transB),
        alpha: floatAttribute(alpha),
        beta: floatAttribute(beta),
      };
      expect(await gradientError({ op: "Gemm", attributes, inputs })).toBeLessThan(tolerance);
    }),
    { seed: 3, numRuns: 36 },
  );
});

test.each([
  { transA: 0, transB: 1 },
  { transA: 1, transB: 0 },
])("FusedMatMul $transA $transB: gradients equal finite differences", async ({ transA, transB }) => {
  const attributes = { transA, transB, alpha: floatAttribute(0.6) };
  const inputs = [{ dims: transA ? [2, 3, 2] : [2, 2, 3] }, { dims: transB ? [2, 4, 3] : [2, 3, 4] }];
  expect(await gradientError({ op: "FusedMatMul", domain: "com.microsoft", attributes, inputs })).toBeLessThan(
    tolerance,
  );
});

test.each([
  {
    equation: "ij,jk->ik",
    shapes: [
      [2, 3],
      [3, 4],
    ],
  },
  {
    equation: "bhid,bhjd->bhij",
    shapes: [
      [2, 2, 3, 2],
      [2, 2, 4, 2],
    ],
  },
  {
    equation: "bij,bjd",
    shapes: [
      [2, 3, 2],
      [2, 2, 3],
    ],
  },
  {
    equation: "...ij,...jk->...ik",
    shapes: [
      [2, 2, 3],
      [2, 3, 2],
    ],
  },
  { equation: "ij->j", shapes: [[3, 2]] },
  { equation: "ij,k->i", shapes: [[2, 3], [4]] },
])("Einsum $equation: gradients equal finite differences", async ({ equation, shapes }) => {
  const inputs = shapes.map((dims) => ({ dims }));
  expect(await gradientError({ op: "Einsum", attributes: { equation }, inputs })).toBeLessThan(tolerance);
});

describe("convolutions", () => {
  const geometry = fc.record({
    rank: fc.constantFrom(1, 2),
    kernel: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 2, maxLength: 2 }),
    strides: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 2, maxLength: 2 }),
    dilations: fc.array(fc.integer({ min: 1, max: 2 }), { minLength: 2, maxLength: 2 }),
    pads: fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 4, maxLength: 4 }),
    size: fc.array(fc.integer({ min: 5, max: 7 }), { minLength: 2, maxLength: 2 }),
    group: fc.constantFrom(1, 2),
    bias: fc.boolean(),
  });

  test("Conv: gradients equal finite differences for every geometry", async () => {
    await fc.assert(
      fc.asyncProperty(geometry, async ({ rank, kernel, strides, dilations, pads, size, group, bias }) => {
        const cut = <T>(values: T[]) => values.slice(0, rank);
        const example: OperatorCase = {
          op: "Conv",
          attributes: {
            kernel_shape: cut(kernel),
            strides: cut(strides),
            dilations: cut(dilations),
            pads: [...pads.slice(0, rank), ...pads.slice(2, 2 + rank)],
            group,
          },
          inputs: [
            { dims: [2, 2 * group, ...cut(size)] },
            { dims: [2 * group, 2, ...cut(kernel)] },
            ...(bias ? [{ dims: [2 * group] }] : []),
          ],
        };
        expect(await gradientError(example)).toBeLessThan(tolerance);
      }),
      { seed: 5, numRuns: 20 },
    );
  });

  test.each(["SAME_UPPER", "SAME_LOWER", "VALID"])(
    "Conv with auto_pad %s: gradients equal finite differences",
    async (mode) => {
      const attributes = { auto_pad: mode, strides: [2, 1] };
      const inputs = [{ dims: [1, 2, 5, 6] }, { dims: [3, 2, 3, 2] }];
      expect(await gradientError({ op: "Conv", attributes, inputs })).toBeLessThan(tolerance);
    },
  );

  test("ConvTranspose: gradients equal finite differences for every geometry", async () => {
    const fields = geometry.filter(({ kernel, dilations, pads }) =>
      [0, 1].every((axis) => pads[axis] + pads[axis + 2] <= dilations[axis] * (kernel[axis] - 1) + 1),
    );
    await fc.assert(
      fc.asyncProperty(
        fields,
        fc.boolean(),
        async ({ rank, kernel, strides, dilations, pads, group, bias }, isExtended) => {
          const cut = <T>(values: T[]) => values.slice(0, rank);
          const extra = cut(strides).map((stride) => (isExtended ? stride - 1 : 0));
          const example: OperatorCase = {
            op: "ConvTranspose",
            attributes: {
              kernel_shape: cut(kernel),
              strides: cut(strides),
              dilations: cut(dilations),
              pads: [...pads.slice(0, rank), ...pads.slice(2, 2 + rank)],
              output_padding: extra,
              group,
            },
            inputs: [
              { dims: [2, 2 * group, ...[3, 4].slice(0, rank)] },
              { dims: [2 * group, 2, ...cut(kernel)] },
              ...(bias ? [{ dims: [2 * group] }] : []),
            ],
          };
          expect(await gradientError(example)).toBeLessThan(tolerance);
        },
      ),
      { seed: 6, numRuns: 16 },
    );
  });
});
