import { describe, expect, test } from "vitest";
import { gradientError, type OperatorCase } from "../../../../test/helpers/finite-differences.ts";
import { floatAttribute } from "../ir/node.ts";
import { Tensor } from "../ir/tensor.ts";

const tolerance = 1e-3;
const x = { dims: [2, 4, 3, 2], from: -2, to: 2 };
const epsilon = floatAttribute(1e-3);

const cases: Record<string, OperatorCase> = {
  InstanceNormalization: {
    op: "InstanceNormalization",
    inputs: [x, { dims: [4] }, { dims: [4] }],
    attributes: { epsilon },
  },
  "InstanceNormalization with scale 1": {
    op: "InstanceNormalization",
    inputs: [{ dims: [2, 3, 6] }, Tensor.float32([3], [1, 1, 1]), Tensor.float32([3], [0, 0, 0])],
  },
  LayerNormalization: {
    op: "LayerNormalization",
    inputs: [{ dims: [2, 3, 6] }, { dims: [6] }, { dims: [6] }],
    attributes: { epsilon },
  },
  "LayerNormalization over two axes, without bias": {
    op: "LayerNormalization",
    inputs: [x, { dims: [3, 2] }],
    attributes: { axis: -2, epsilon },
  },
  "LayerNormalization far from zero": {
    op: "LayerNormalization",
    inputs: [{ dims: [3, 8], from: 20, to: 22 }, { dims: [8] }, { dims: [8] }],
  },
  "GroupNormalization 18, per group": {
    op: "GroupNormalization",
    opset: 18,
    inputs: [x, { dims: [2] }, { dims: [2] }],
    attributes: { num_groups: 2, epsilon },
  },
  "GroupNormalization 21, per channel": {
    op: "GroupNormalization",
    opset: 21,
    inputs: [x, { dims: [4] }, { dims: [4] }],
    attributes: { num_groups: 2, epsilon },
  },
  BatchNormalization: {
    op: "BatchNormalization",
    inputs: [x, { dims: [4] }, { dims: [4] }, { dims: [4] }, { dims: [4], from: 0.5, to: 2 }],
    attributes: { epsilon },
  },
  SimplifiedLayerNormalization: {
    op: "SimplifiedLayerNormalization",
    inputs: [x, { dims: [2] }],
    attributes: { axis: -1, epsilon },
  },
  "LpNormalization of degree 2": { op: "LpNormalization", inputs: [x], attributes: { axis: 1, p: 2 } },
  "Softmax over the last axis": { op: "Softmax", inputs: [x], type: "float64" },
  "Softmax over another axis": { op: "Softmax", inputs: [x], attributes: { axis: 1 } },
  "LogSoftmax over the last axis": { op: "LogSoftmax", inputs: [x] },
  "LogSoftmax over another axis": { op: "LogSoftmax", inputs: [x], attributes: { axis: 2 } },
};

test.each(Object.entries(cases))("gradients of %s equal finite differences", async (_, example) => {
  expect(await gradientError(example)).toBeLessThan(tolerance);
});

describe("reductions", () => {
  const reductions = [
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
  ];
  const data = { dims: [2, 3, 4], from: 0.3, to: 1.5, distinct: true };
  const forms = reductions.flatMap((op) =>
    [13, 18].flatMap((opset) => [0, 1].map((keepdims) => ({ op, opset, keepdims }))),
  );

  test.each(forms)(
    "gradient of $op (opset $opset, keepdims $keepdims) equals finite differences",
    async ({ op, opset, keepdims }) => {
      const asInput = op === "ReduceSum" || opset >= 18;
      const attributes = { keepdims, ...(asInput ? {} : { axes: [0, -1] }) };
      const inputs = asInput ? [data, Tensor.int64([2], [0, -1])] : [data];
      expect(await gradientError({ op, opset, attributes, inputs })).toBeLessThan(tolerance);
    },
  );

  test.each(reductions)("gradient of %s over all axes equals finite differences", async (op) => {
    expect(await gradientError({ op, inputs: [data], attributes: { keepdims: 0 } })).toBeLessThan(tolerance);
  });

  test("noop_with_empty_axes reduces nothing", async () => {
    const attributes = { noop_with_empty_axes: 1 };
    expect(await gradientError({ op: "ReduceSum", inputs: [data], attributes })).toBeLessThan(tolerance);
  });
});
