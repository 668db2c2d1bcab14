import { expect, test } from "vitest";
import { randomNumbers, relativeError } from "../../../../test/helpers/finite-differences.ts";
import { checkModel } from "../ir/check.ts";
import { Graph } from "../ir/graph.ts";
import { Model } from "../ir/model.ts";
import { Tensor } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";
import { runModel } from "../ort/run.ts";
import { Builder } from "./builder.ts";
import { buildGradients } from "./gradients.ts";
import { adamW, clipByGlobalNorm, meanSquaredError } from "./optimizer.ts";
import { packInputs } from "./parameters.ts";
import { peakBytes, scheduleForMemory } from "./schedule.ts";

const random = randomNumbers(9);
const draw = (count: number) => Array.from({ length: count }, () => random() * 2 - 1);

test("AdamW follows the paper's algorithm over several steps", async () => {
  const graph = new Graph("optimizer");
  const model = new Model(graph);
  const size = 5;
  const vector = (name: string) => graph.addInput(name, "float32", [size]);
  const scalar = (name: string) => graph.addInput(name, "float32", []);
  const options = { beta1: 0.8, beta2: 0.95, epsilon: 1e-6, weightDecay: 0.1 };
  const next = adamW(
    new Builder(model),
    {
      parameter: vector("parameter"),
      gradient: vector("gradient"),
      mean: vector("mean"),
      square: vector("square"),
      learningRate: scalar("rate"),
      correction1: scalar("correction1"),
      correction2: scalar("correction2"),
    },
    options,
  );
  graph.outputs.push(next.parameter, next.mean, next.square);
  checkModel(model);

  const rate = 0.05;
  let state = { parameter: draw(size), mean: draw(size).fill(0), square: draw(size).fill(0) };
  let expected = structuredClone(state);
  for (let step = 1; step <= 4; step++) {
    const gradient = draw(size);
    const float = (values: number[]) => Tensor.float32([values.length], values);
    const results = await runModel(model, {
      parameter: float(state.parameter),
      gradient: float(gradient),
      mean: float(state.mean),
      square: float(state.square),
      rate: Tensor.scalar(rate),
      correction1: Tensor.scalar(1 - options.beta1 ** step),
      correction2: Tensor.scalar(1 - options.beta2 ** step),
    });
    const read = (value: Value) => results.get(value.name)!.toNumbers();
    state = { parameter: read(next.parameter), mean: read(next.mean), square: read(next.square) };
    const mean = expected.mean.map((m, i) => options.beta1 * m + (1 - options.beta1) * gradient[i]);
    const square = expected.square.map((v, i) => options.beta2 * v + (1 - options.beta2) * gradient[i] ** 2);
    const parameter = expected.parameter.map((p, i) => {
      const [m, v] = [mean[i] / (1 - options.beta1 ** step), square[i] / (1 - options.beta2 ** step)];
      return p - rate * (m / (Math.sqrt(v) + options.epsilon) + options.weightDecay * p);
    });
    expected = { parameter, mean, square };
    expect(relativeError(state.parameter, expected.parameter)).toBeLessThan(1e-5);
  }
});

test.each([
  { maxNorm: 100, isClipped: false },
  { maxNorm: 0.5, isClipped: true },
])("gradients are scaled to the global norm $maxNorm only when above it", async ({ maxNorm, isClipped }) => {
  const graph = new Graph("clip");
  const model = new Model(graph);
  const inputs = [graph.addInput("a", "float32", [3]), graph.addInput("b", "float32", [2, 2])];
  const { gradients, norm } = clipByGlobalNorm(new Builder(model), inputs, maxNorm);
  graph.outputs.push(...gradients, norm);
  const [a, b] = [draw(3), draw(4)];
  const results = await runModel(model, { a: Tensor.float32([3], a), b: Tensor.float32([2, 2], b) });
  const length = Math.hypot(...a, ...b);
  const factor = isClipped ? maxNorm / length : 1;
  expect(relativeError(results.get(norm.name)!.toNumbers(), [length])).toBeLessThan(1e-6);
  expect(
    relativeError(
      results.get(gradients[0].name)!.toNumbers(),
      a.map((value) => value * factor),
    ),
  ).toBeLessThan(1e-6);
  expect(
    relativeError(
      results.get(gradients[1].name)!.toNumbers(),
      b.map((value) => value * factor),
    ),
  ).toBeLessThan(1e-6);
});

test("packed inputs act as the inputs they replace, and have one gradient", async () => {
  const graph = new Graph("packed");
  const model = new Model(graph);
  const x = graph.addInput("x", "float32", [4, 3]);
  const [a, b] = [graph.addInput("a", "float32", [3, 2]), graph.addInput("b", "float32", [2, 5])];
  const product = graph.apply("MatMul", [graph.apply("MatMul", [x, a]), b]);
  for (const [value, dims] of [
    [product, [4, 5]],
    [product.producer!.input(0), [4, 2]],
  ] as const) {
    value.type = { kind: "tensor", dataType: "float32", shape: dims };
  }
  const target = graph.addInput("target", "float32", [4, 5]);
  const loss = meanSquaredError(new Builder(model), product, target);
  const separate = buildGradients(model, { outputs: [{ value: loss }], wrt: [a, b] });
  graph.outputs.push(loss, separate.get(a)!, separate.get(b)!);
  const feeds = { x: Tensor.float32([4, 3], draw(12)), target: Tensor.float32([4, 5], draw(20)) };
  const [first, second] = [draw(6), draw(10)];
  const before = await runModel(model, {
    ...feeds,
    a: Tensor.float32([3, 2], first),
    b: Tensor.float32([2, 5], second),
  });
  const expected = [
    ...before.get(separate.get(a)!.name)!.toNumbers(),
    ...before.get(separate.get(b)!.name)!.toNumbers(),
  ];

  const { vector, size, layout } = packInputs(model, [a, b], "parameters");
  expect(size).toBe(16);
  expect(layout).toEqual([
    { name: "a", offset: 0, dims: [3, 2] },
    { name: "b", offset: 6, dims: [2, 5] },
  ]);
  expect(graph.inputs.map((input) => input.name)).toEqual(["x", "target", "parameters"]);
  const gradient = buildGradients(model, { outputs: [{ value: loss }], wrt: [vector] }).get(vector)!;
  graph.outputs.length = 1;
  graph.outputs.push(gradient);
  scheduleForMemory(graph);
  checkModel(model);
  const after = await runModel(model, { ...feeds, parameters: Tensor.float32([16], [...first, ...second]) });
  expect(after.get(loss.name)!.toNumbers()).toEqual(before.get(loss.name)!.toNumbers());
  expect(relativeError(after.get(gradient.name)!.toNumbers(), expected)).toBeLessThan(1e-5);
});

test("scheduling puts a file order in which every node follows what it reads", () => {
  const graph = new Graph("order");
  const model = new Model(graph);
  let value: Value = graph.addInput("x", "float32", [8, 8]);
  const sums: Value[] = [];
  for (let layer = 0; layer < 5; layer++) {
    value = graph.apply("Tanh", [value]);
    value.type = { kind: "tensor", dataType: "float32", shape: [8, 8] };
    const sum = graph.apply("ReduceSum", [value], { name: `sum${layer}` });
    sum.type = { kind: "tensor", dataType: "float32", shape: [1, 1] };
    sums.push(sum);
  }
  graph.outputs.push(graph.apply("Concat", sums, { attributes: { axis: 0 } }));
  const execution = scheduleForMemory(graph);
  checkModel(model);
  // The input, two layers of 64 float32 each, and the sums of the four layers before.
  expect(peakBytes(graph, execution)).toBe(3 * 256 + 4 * 4);
  const order = [...graph.nodes];
  expect(graph.sorted()).toEqual(order);
  // A depth-first walk that takes the last input in file order first meets the sums from the first layer on.
  const places = sums.map((sum) => order.indexOf(sum.producer!));
  expect(places).toEqual([...places].sort((a, b) => b - a));
});
