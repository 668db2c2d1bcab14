import fc from "fast-check";
import { expect, test } from "vitest";
import { gradientError, type OperatorCase } from "../../../../test/helpers/finite-differences.ts";
import { floatAttribute } from "../ir/node.ts";
import { Tensor } from "../ir/tensor.ts";
import { broadcast } from "./builder.ts";

const tolerance = 1e-3;
const dims = [2, 3, 2];
const any = { dims };
const positive = { dims, from: 0.3, to: 2 };
const offZero = { dims, awayFromZero: 0.1 };

const unaryCases: Record<string, OperatorCase> = {
  Neg: { op: "Neg", inputs: [any] },
  Identity: { op: "Identity", inputs: [any] },
  Abs: { op: "Abs", inputs: [offZero] },
  Sqrt: { op: "Sqrt", inputs: [positive] },
  Reciprocal: { op: "Reciprocal", inputs: [positive] },
  Exp: { op: "Exp", inputs: [any] },
  Log: { op: "Log", inputs: [positive] },
  Sin: { op: "Sin", inputs: [any] },
  Cos: { op: "Cos", inputs: [any] },
  Tan: { op: "Tan", inputs: [any] },
  Atan: { op: "Atan", inputs: [any] },
  Tanh: { op: "Tanh", inputs: [any] },
  Sigmoid: { op: "Sigmoid", inputs: [any] },
  Erf: { op: "Erf", inputs: [any] },
  Relu: { op: "Relu", inputs: [offZero] },
  LeakyRelu: { op: "LeakyRelu", inputs: [offZero], attributes: { alpha: floatAttribute(0.2) } },
  Elu: { op: "Elu", inputs: [offZero], attributes: { alpha: floatAttribute(0.7) } },
  Softplus: { op: "Softplus", inputs: [any] },
  Softsign: { op: "Softsign", inputs: [offZero] },
  HardSigmoid: { op: "HardSigmoid", inputs: [{ dims, distinct: true, from: -4, to: 4 }] },
  HardSwish: { op: "HardSwish", inputs: [{ dims, distinct: true, from: -4, to: 4.3 }] },
  Mish: { op: "Mish", opset: 18, inputs: [any] },
  "Gelu (exact)": { op: "Gelu", opset: 20, inputs: [any] },
  "Gelu (tanh)": { op: "Gelu", opset: 20, inputs: [any], attributes: { approximate: "tanh" } },
  "Gelu of com.microsoft": { op: "Gelu", domain: "com.microsoft", inputs: [any] },
  QuickGelu: { op: "QuickGelu", domain: "com.microsoft", inputs: [any], attributes: { alpha: floatAttribute(1.3) } },
  "FastGelu with bias": { op: "FastGelu", domain: "com.microsoft", inputs: [any, { dims: [2] }] },
  Dropout: { op: "Dropout", inputs: [any] },
  Clip: {
    op: "Clip",
    inputs: [
      { dims, distinct: true, from: -1, to: 1.05 },
      { dims: [], values: [-0.5] },
      { dims: [], values: [0.5] },
    ],
  },
  "Clip above only": { op: "Clip", inputs: [{ dims, distinct: true }, null, Tensor.scalar(0.2)] },
};

test.each(Object.entries(unaryCases))("gradient of %s equals finite differences", async (_, example) => {
  expect(await gradientError(example)).toBeLessThan(tolerance);
});

test.each(["Sign", "Floor", "Ceil", "Round"])("%s has gradient zero", async (op) => {
  expect(await gradientError({ op, inputs: [{ dims, distinct: true, from: -2.9, to: 2.95 }] })).toBeLessThan(tolerance);
});

/** A shape, and two shapes that broadcast to it. */
const broadcastShapes = fc
  .tuple(
    fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 4 }),
    fc.infiniteStream(fc.boolean()),
    fc.nat(4),
    fc.boolean(),
  )
  .map(([shape, ones, cut, which]) => {
    const full = shape.map((dim) => (ones.next().value ? 1 : dim));
    const other = shape.map((dim) => (ones.next().value ? 1 : dim)).slice(Math.min(cut, shape.length));
    return which ? ([full, other] as const) : ([other, full] as const);
  });

test.each(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])(
  "gradients of %s equal finite differences for every pair of shapes that broadcast",
  async (op) => {
    await fc.assert(
      fc.asyncProperty(broadcastShapes, async ([a, b]) => {
        const isPositive = op === "Div" || op === "Pow";
        const bounds = { from: isPositive ? 0.5 : -1, to: 1.5 };
        const type = op === "Mean" ? "float32" : "float64";
        const inputs = [
          { dims: a, distinct: true, ...bounds },
          { dims: b, distinct: true, from: bounds.from, to: bounds.to + 0.013 },
        ];
        expect(await gradientError({ op, inputs, type })).toBeLessThan(tolerance);
      }),
      { seed: 11, numRuns: 12 },
    );
  },
);

test("gradients of Where equal finite differences for broadcast operands", async () => {
  await fc.assert(
    fc.asyncProperty(broadcastShapes, fc.infiniteStream(fc.boolean()), async ([a, b], bits) => {
      const shape = broadcast(a, b);
      const count = shape.reduce((product, dim) => product * dim, 1);
      const condition = Tensor.of(
        "bool",
        shape,
        Uint8Array.from({ length: count }, () => (bits.next().value ? 1 : 0)),
      );
      expect(await gradientError({ op: "Where", inputs: [condition, { dims: a }, { dims: b }] })).toBeLessThan(
        tolerance,
      );
    }),
    { seed: 12, numRuns: 10 },
  );
});

test.each([2, 3, 0.5, 1, 0, -1.5])("gradient of x^%s equals finite differences", async (power) => {
  expect(await gradientError({ op: "Pow", inputs: [positive, Tensor.scalar(power)] })).toBeLessThan(tolerance);
});

test("ties of Max share the gradient", async () => {
  const tied = { dims: [3], values: [1, 2, 3] };
  // One side of a tie moves the maximum up but not down: the average of both slopes is the half that the rule gives.
  expect(await gradientError({ op: "Max", inputs: [tied, tied] })).toBeLessThan(tolerance);
});

test("gradients of PRelu equal finite differences", async () => {
  expect(
    await gradientError({ op: "PRelu", inputs: [{ dims: [2, 3, 4], awayFromZero: 0.1 }, { dims: [3, 1] }] }),
  ).toBeLessThan(tolerance);
});
