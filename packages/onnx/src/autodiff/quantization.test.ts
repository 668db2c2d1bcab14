import { expect, test } from "vitest";
import { relativeError } from "../../../../test/helpers/finite-differences.ts";
import { Graph } from "../ir/graph.ts";
import { Model } from "../ir/model.ts";
import { Tensor } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";
import { inferShapes } from "../ort/concrete-shapes.ts";
import { runModel } from "../ort/run.ts";
import { buildGradients } from "./gradients.ts";

function model(opset = 21): { model: Model; graph: Graph } {
  const graph = new Graph("fake quantization");
  const made = new Model(graph);
  made.irVersion = 10;
  made.opsets.set("", opset);
  made.opsets.set("com.microsoft", 1);
  return { model: made, graph };
}

async function gradients(
  built: Model,
  y: Value,
  wrt: Value[],
  feeds: Record<string, Tensor>,
  straightThroughRound = false,
) {
  built.graph.outputs.push(y);
  await inferShapes(built, {}, feeds);
  const seed = built.graph.addInitializer(
    "seed",
    Tensor.float32(y.concreteShape!, y.concreteShape!.length ? ramp(y) : [1]),
  );
  const found = buildGradients(built, { outputs: [{ value: y, seed }], wrt, straightThroughRound });
  const values = wrt.map((value) => found.get(value)!);
  built.graph.outputs.push(...values);
  const results = await runModel(built, feeds, { graphOptimizationLevel: "disabled" });
  return values.map((value) => results.get(value.name)!.toNumbers());
}

function ramp(value: Value): number[] {
  const count = value.concreteShape!.reduce((product, dim) => product * dim, 1);
  return Array.from({ length: count }, (_, index) => index + 1);
}

const zeroPoints = {
  int8: Tensor.of("int8", [], Int8Array.of(-3)),
  uint8: Tensor.of("uint8", [], Uint8Array.of(120)),
  int16: Tensor.of("int16", [], Int16Array.of(500)),
  uint16: Tensor.of("uint16", [], Uint16Array.of(30000)),
} as const;
const grids = { int8: [-128, 127], uint8: [0, 255], int16: [-32768, 32767], uint16: [0, 65535] } as const;

/** Numbers inside, at, and beyond the range of a grid. */
function samples(scale: number, zero: number, [low, high]: readonly [number, number]): number[] {
  return [low - 20, low - 0.6, low - 0.4, low, zero + 0.3, zero + 7.7, high, high + 0.4, high + 0.6, high + 9].map(
    (q) => (q - zero) * scale,
  );
}

test.each(
  ["", "com.microsoft"].flatMap((domain) =>
    (["int8", "uint8", "int16", "uint16"] as const).map((type) => ({ domain, type })),
  ),
)('gradients pass "$domain" quantization to $type where the input rounds onto the grid', async ({ domain, type }) => {
  const { model: built, graph } = model();
  const zero = zeroPoints[type].toNumbers()[0];
  const scale = 0.01;
  const content = samples(scale, zero, grids[type]);
  const x = graph.addInput("x", "float32", [content.length]);
  const parameters = [
    graph.addInitializer("scale", Tensor.scalar(scale)),
    graph.addInitializer("zero", zeroPoints[type]),
  ];
  const q = graph.apply("QuantizeLinear", [x, ...parameters], { domain });
  const y = graph.apply("DequantizeLinear", [q, ...parameters], { domain });
  const [dx] = await gradients(built, y, [x], { x: Tensor.float32([content.length], content) });
  const passes = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0];
  expect(dx).toEqual(passes.map((pass, index) => pass * (index + 1)));
});

test("per-channel quantization and a Transpose between the two operators", async () => {
  const { model: built, graph } = model();
  const x = graph.addInput("x", "float32", [2, 3]);
  const scale = graph.addInitializer("scale", Tensor.float32([3], [0.1, 1, 0.001]));
  const zero = graph.addInitializer("zero", Tensor.of("int8", [3], new Int8Array(3)));
  const q = graph.apply("QuantizeLinear", [x, scale, zero], { attributes: { axis: 1 } });
  const turned = graph.apply("Transpose", [q], { attributes: { perm: [1, 0] } });
  const y = graph.apply("DequantizeLinear", [turned, scale, zero], { attributes: { axis: 0 } });
  const content = Tensor.float32([2, 3], [13, 13, 13, 1, 1, -1]);
  const [dx] = await gradients(built, y, [x], { x: content });
  // y is [3, 2] with the seed 1..6; channel ranges are 12.7, 127 and 0.127.
  expect(dx).toEqual([0, 3, 0, 2, 4, 0]);
});

test("the gradient by the scale is that of learned step size quantization", async () => {
  const { model: built, graph } = model();
  const content = [-2000, -0.31, 0.27, 0.449, 3000];
  const x = graph.addInput("x", "float32", [5]);
  const scale = graph.addInput("scale", "float32", []);
  const zero = graph.addInitializer("zero", Tensor.of("int8", [], new Int8Array(1)));
  const q = graph.apply("QuantizeLinear", [x, scale, zero]);
  const y = graph.apply("DequantizeLinear", [q, scale, zero]);
  const step = 0.1;
  const [dScale] = await gradients(built, y, [scale], { x: Tensor.float32([5], content), scale: Tensor.scalar(step) });
  // Esser et al., equation 3: round(x / s) - x / s inside, the grid's end outside.
  const slope = [-128, Math.round(-3.1) + 3.1, Math.round(2.7) - 2.7, Math.round(4.49) - 4.49, 127];
  const expected = slope.reduce((sum, value, index) => sum + value * (index + 1), 0);
  expect(relativeError(dScale, [expected])).toBeLessThan(1e-4);
});

test("in float operators, too, with bounds that follow the scale's logarithm", async () => {
  const { model: built, graph } = model();
  const content = [-3, -0.31, 0.27, 0.449, 9];
  const [step, zero] = [0.1, 20];
  const x = graph.addInput("x", "float32", [5]);
  const logFactor = graph.addInput("p", "float32", []);
  const number = (name: string, value: number) => graph.addInitializer(name, Tensor.scalar(value));
  const scale = graph.apply("Mul", [number("start", step), graph.apply("Exp", [logFactor])]);
  const bounds = [-zero, 255 - zero].map((code, index) => graph.apply("Mul", [scale, number(`end${index}`, code)]));
  const rounded = graph.apply("Round", [graph.apply("Div", [graph.apply("Clip", [x, ...bounds]), scale])]);
  const y = graph.apply("Mul", [rounded, scale]);
  const feeds = { x: Tensor.float32([5], content), p: Tensor.scalar(0.2) };
  const [gradient] = await gradients(built, y, [logFactor], feeds, true);
  const s = step * Math.exp(0.2);
  // Equation 3 again, times ds / dp = s. With 20 codes below zero, -3 is clipped; 9 is not.
  const slope = content.map((value) => (value < -zero * s ? -zero : Math.round(value / s) - value / s));
  const expected = slope.reduce((sum, value, index) => sum + s * value * (index + 1), 0);
  expect(slope[0]).toBe(-zero);
  expect(relativeError(gradient, [expected])).toBeLessThan(1e-4);
});

test("a constant quantized weight takes no part, and what it multiplies gets its gradient", async () => {
  const { model: built, graph } = model();
  const x = graph.addInput("x", "float32", [1, 2]);
  const w = graph.addInitializer("w", Tensor.of("int8", [2, 2], Int8Array.of(1, 2, 3, 4)));
  const weight = graph.apply("DequantizeLinear", [w, graph.addInitializer("s", Tensor.scalar(0.5)), null]);
  const y = graph.apply("MatMul", [x, weight]);
  const [dx] = await gradients(built, y, [x], { x: Tensor.float32([1, 2], [1, 1]) });
  // seed [1, 2] times the transposed weight [[0.5, 1.5], [1, 2]]
  expect(dx).toEqual([2.5, 5.5]);
});

test("fake quantization in float operators: Round passes straight through, Clip masks", async () => {
  const { model: built, graph } = model();
  const x = graph.addInput("x", "float32", [4]);
  const scale = graph.addInitializer("scale", Tensor.scalar(0.5));
  const rounded = graph.apply("Round", [graph.apply("Div", [x, scale])]);
  const bounds = [graph.addInitializer("low", Tensor.scalar(-4)), graph.addInitializer("high", Tensor.scalar(3))];
  const y = graph.apply("Mul", [graph.apply("Clip", [rounded, ...bounds]), scale]);
  const [dx] = await gradients(built, y, [x], { x: Tensor.float32([4], [-3, -1.1, 0.6, 2]) }, true);
  expect(dx).toEqual([0, 2, 3, 0]);
});
