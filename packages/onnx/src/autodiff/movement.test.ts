import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { gradientError, type OperatorCase } from "../../../../test/helpers/finite-differences.ts";
import { Tensor } from "../ir/tensor.ts";

const tolerance = 1e-3;
const x = { dims: [2, 4, 3] };
const ints = (...values: number[]) => Tensor.int64([values.length], values);
const none = Tensor.float32([0], []);

const cases: Record<string, OperatorCase> = {
  Reshape: { op: "Reshape", inputs: [x, ints(0, -1)] },
  Flatten: { op: "Flatten", inputs: [x], attributes: { axis: 2 } },
  Squeeze: { op: "Squeeze", inputs: [{ dims: [2, 1, 3, 1] }, ints(1, -1)] },
  Unsqueeze: { op: "Unsqueeze", inputs: [x, ints(0, 2)] },
  Expand: { op: "Expand", inputs: [{ dims: [4, 1] }, ints(2, 1, 3)] },
  Transpose: { op: "Transpose", inputs: [x], attributes: { perm: [2, 0, 1] } },
  "Transpose without perm": { op: "Transpose", inputs: [x] },
  Concat: { op: "Concat", inputs: [x, { dims: [2, 1, 3] }, { dims: [2, 2, 3] }], attributes: { axis: 1 } },
  "Concat in part": { op: "Concat", inputs: [{ ...x, frozen: true }, { dims: [2, 1, 3] }], attributes: { axis: -2 } },
  "Split by lengths": { op: "Split", inputs: [x, ints(1, 3)], attributes: { axis: 1 }, outputs: 2 },
  "Split evenly": { op: "Split", inputs: [x], attributes: { axis: 1 }, outputs: 2 },
  "Split into a number": { op: "Split", opset: 18, inputs: [x], attributes: { axis: 2, num_outputs: 2 }, outputs: 2 },
  Tile: { op: "Tile", inputs: [x, ints(1, 2, 3)] },
  DepthToSpace: { op: "DepthToSpace", inputs: [{ dims: [1, 8, 2, 3] }], attributes: { blocksize: 2 } },
  "DepthToSpace CRD": {
    op: "DepthToSpace",
    inputs: [{ dims: [1, 8, 2, 3] }],
    attributes: { blocksize: 2, mode: "CRD" },
  },
  SpaceToDepth: { op: "SpaceToDepth", inputs: [{ dims: [1, 2, 4, 2] }], attributes: { blocksize: 2 } },
  Trilu: { op: "Trilu", inputs: [{ dims: [3, 4] }], attributes: { upper: 0 } },
  "Trilu with offset": { op: "Trilu", inputs: [{ dims: [3, 4] }, Tensor.int64([], [1])] },
  CumSum: { op: "CumSum", inputs: [x, Tensor.int64([], [1])] },
  "CumSum exclusive": { op: "CumSum", inputs: [x, Tensor.int64([], [1])], attributes: { exclusive: 1, reverse: 1 } },
  "Gather one": { op: "Gather", inputs: [x, Tensor.int64([], [-1])], attributes: { axis: 1 } },
  "Gather with repeats": { op: "Gather", inputs: [x, Tensor.int64([2, 2], [0, 3, 3, -4])], attributes: { axis: 1 } },
  "Gather rows of a table": { op: "Gather", inputs: [{ dims: [5, 3] }, Tensor.int64([4], [1, 1, 4, 1])] },
  "Gather below opset 16": {
    op: "Gather",
    opset: 14,
    inputs: [x, Tensor.int64([3], [2, 2, -4])],
    attributes: { axis: 1 },
  },
  "Gather by int32": {
    op: "Gather",
    inputs: [x, Tensor.of("int32", [3], Int32Array.of(2, 2, 0))],
    attributes: { axis: 1 },
  },
  GatherElements: {
    op: "GatherElements",
    inputs: [x, Tensor.int64([2, 2, 3], [0, 1, 2, 0, 0, 3, 3, 3, 1, 3, 0, 1])],
    attributes: { axis: 1 },
  },
  GatherND: { op: "GatherND", inputs: [x, Tensor.int64([3, 2], [0, 1, 1, 3, 0, 1])] },
  ScatterND: { op: "ScatterND", inputs: [x, Tensor.int64([2, 2], [0, 1, 1, 3]), { dims: [2, 3] }] },
  "ScatterND adding": {
    op: "ScatterND",
    inputs: [x, Tensor.int64([2, 2], [0, 1, 0, 1]), { dims: [2, 3] }],
    attributes: { reduction: "add" },
  },
  ScatterElements: {
    op: "ScatterElements",
    inputs: [x, Tensor.int64([1, 2, 3], [0, 1, 2, 1, 0, 3]), { dims: [1, 2, 3] }],
    attributes: { axis: 1 },
  },
  "Pad with zeros": { op: "Pad", inputs: [x, ints(0, 1, 2, 1, 0, 1)] },
  "Pad that cuts": { op: "Pad", inputs: [x, ints(0, -1, 0, 0, 0, -1)] },
  "Pad that cuts and adds": { op: "Pad", inputs: [x, ints(1, -1, 0, 0, 2, -1)] },
  "Pad by axes": { op: "Pad", opset: 18, inputs: [x, ints(1, 2, 0, 1), null, ints(-1, 1)] },
  "Pad reflecting": { op: "Pad", inputs: [x, ints(0, 2, 1, 0, 1, 2)], attributes: { mode: "reflect" } },
  "Pad with the edge": { op: "Pad", inputs: [x, ints(0, 2, 1, 0, 1, 2)], attributes: { mode: "edge" } },
  "Pad wrapping": { op: "Pad", opset: 19, inputs: [x, ints(0, 2, 1, 0, 1, 2)], attributes: { mode: "wrap" } },
};

test.each(Object.entries(cases))("gradients of %s equal finite differences", async (_, example) => {
  expect(await gradientError(example)).toBeLessThan(tolerance);
});

test("gradient of Slice equals finite differences for every range and step", async () => {
  const bound = fc.integer({ min: -7, max: 7 });
  const step = fc.constantFrom(1, 1, 2, 3, -1, -2);
  const slice = fc.record({ start: bound, end: bound, step });
  await fc.assert(
    fc.asyncProperty(slice, slice, async (first, second) => {
      const inputs = [
        { dims: [5, 6] },
        ints(first.start, second.start),
        ints(first.end, second.end),
        ints(-1, 0),
        ints(first.step, second.step),
      ];
      expect(await gradientError({ op: "Slice", inputs })).toBeLessThan(tolerance);
    }),
    { seed: 21, numRuns: 40 },
  );
});

describe("Resize", () => {
  const image = { dims: [1, 2, 3, 4] };
  const scales = (...values: number[]) => Tensor.float32([values.length], values);
  const modes = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"];
  test.each(
    modes.flatMap((mode) =>
      ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"].map((nearest) => ({ mode, nearest })),
    ),
  )("nearest ($mode, $nearest): gradient equals finite differences", async ({ mode, nearest }) => {
    const attributes = { mode: "nearest", nearest_mode: nearest, coordinate_transformation_mode: mode };
    for (const scale of [scales(1, 1, 2, 2), scales(1, 1, 1.7, 0.6)]) {
      expect(await gradientError({ op: "Resize", inputs: [image, none, scale], attributes })).toBeLessThan(tolerance);
    }
  });

  test.each(modes.flatMap((mode) => ["linear", "cubic"].map((kind) => ({ mode, kind }))))(
    "$kind ($mode): gradient equals finite differences",
    async ({ mode, kind }) => {
      const attributes = { mode: kind, coordinate_transformation_mode: mode };
      for (const scale of [scales(1, 1, 2, 2), scales(1, 1, 1.7, 0.6)]) {
        expect(await gradientError({ op: "Resize", inputs: [image, none, scale], attributes })).toBeLessThan(tolerance);
      }
      const sizes = ints(1, 2, 5, 7);
      expect(await gradientError({ op: "Resize", inputs: [image, null, null, sizes], attributes })).toBeLessThan(
        tolerance,
      );
    },
  );

  test("scales for some axes (opset 18): gradient equals finite differences", async () => {
    const attributes = { mode: "nearest", axes: [3, 2] };
    expect(
      await gradientError({ op: "Resize", opset: 18, inputs: [image, null, scales(2, 3)], attributes }),
    ).toBeLessThan(tolerance);
  });
});

describe("pooling", () => {
  const image = { dims: [2, 2, 5, 6], distinct: true };
  const pools: Record<string, OperatorCase> = {
    "AveragePool 2": { op: "AveragePool", inputs: [image], attributes: { kernel_shape: [2, 2], strides: [2, 2] } },
    "AveragePool with pads": {
      op: "AveragePool",
      inputs: [image],
      attributes: { kernel_shape: [3, 3], pads: [1, 0, 1, 1] },
    },
    "AveragePool counting pads": {
      op: "AveragePool",
      inputs: [image],
      attributes: { kernel_shape: [3, 2], pads: [1, 0, 1, 1], count_include_pad: 1, strides: [2, 1] },
    },
    "AveragePool rounding up": {
      op: "AveragePool",
      inputs: [image],
      attributes: { kernel_shape: [2, 3], strides: [2, 2], ceil_mode: 1 },
    },
    "AveragePool SAME_UPPER": {
      op: "AveragePool",
      inputs: [image],
      attributes: { kernel_shape: [3, 3], strides: [2, 2], auto_pad: "SAME_UPPER" },
    },
    MaxPool: {
      op: "MaxPool",
      inputs: [image],
      attributes: { kernel_shape: [3, 2], strides: [1, 2], pads: [1, 0, 1, 0] },
    },
    GlobalAveragePool: { op: "GlobalAveragePool", inputs: [image] },
    GlobalMaxPool: { op: "GlobalMaxPool", inputs: [image] },
  };
  test.each(Object.entries(pools))("gradient of %s equals finite differences", async (_, example) => {
    expect(await gradientError(example)).toBeLessThan(tolerance);
  });
});
