import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import { randomNumbers, relativeError } from "../../../../test/helpers/finite-differences.ts";
import { checkModel } from "../ir/check.ts";
import { Graph } from "../ir/graph.ts";
import { Model } from "../ir/model.ts";
import { outputValue } from "../ir/node.ts";
import { Tensor } from "../ir/tensor.ts";
import { tensorType, type Value } from "../ir/value.ts";
import { inferShapes } from "../ort/concrete-shapes.ts";
import { runModel } from "../ort/run.ts";
import { buildGradients, type GradientRequest } from "./gradients.ts";

const random = randomNumbers(5);
const noise = (dims: number[]) =>
  Tensor.float32(
    dims,
    Array.from({ length: dims.reduce((a, b) => a * b, 1) }, () => random() * 2 - 1),
  );

function empty(opset = 17): { model: Model; graph: Graph } {
  const graph = new Graph("test");
  const model = new Model(graph);
  model.opsets.set("", opset);
  return { model, graph };
}

/** The loss is the sum of y's squares; checks its gradients against central differences. */
async function lossError(
  model: Model,
  y: Value,
  wrt: Value[],
  feeds: Record<string, Tensor>,
  request: Partial<GradientRequest> = {},
) {
  const { graph } = model;
  const loss = graph.apply("ReduceSumSquare", [y], { name: "loss", attributes: { keepdims: 0 } });
  graph.outputs.push(loss);
  loss.type = tensorType("float32", null);
  await inferShapes(model, {}, feeds);
  const gradients = buildGradients(model, { outputs: [{ value: loss }], wrt, ...request });
  const results = wrt.map((value) => gradients.get(value)!);
  graph.outputs.push(...results);
  checkModel(model);
  const optimized = await runModel(model, feeds);
  let worst = 0;
  for (const [index, value] of wrt.entries()) {
    const array = feeds[value.name].array() as Float32Array;
    const expected = Array.from(array);
    for (let place = 0; place < array.length; place++) {
      const original = array[place];
      array[place] = original + 5e-3;
      const high = (await runModel(model, feeds)).get(loss.name)!.toNumbers()[0];
      array[place] = original - 5e-3;
      const low = (await runModel(model, feeds)).get(loss.name)!.toNumbers()[0];
      array[place] = original;
      expected[place] = (high - low) / 1e-2;
    }
    worst = Math.max(worst, relativeError(optimized.get(results[index].name)!.toNumbers(), expected));
  }
  return worst;
}

const tolerance = 3e-3;
const operators = (graph: Graph) => [...graph.nodes].map((node) => node.opType);

test("several uses of a value add up, through matrix products and plain values", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [2, 2, 3]);
  const [w, v] = [graph.addInput("w", "float32", [3, 3]), graph.addInput("v", "float32", [3, 3])];
  const left = graph.apply("MatMul", [x, w]);
  const right = graph.apply("MatMul", [x, v]);
  const y = graph.apply("Add", [graph.apply("Mul", [left, right]), x]);
  const feeds = { x: noise([2, 2, 3]), w: noise([3, 3]), v: noise([3, 3]) };
  expect(await lossError(model, y, [x, w, v], feeds)).toBeLessThan(tolerance);
});

test("slices that tile an axis are joined, others are padded", async () => {
  const build = async (bounds: readonly (readonly [number, number])[]) => {
    const { model, graph } = empty();
    const x = graph.addInput("x", "float32", [2, 6]);
    const constant = (name: string, value: number) => graph.addInitializer(name, Tensor.int64([1], [value]));
    const parts = bounds.map(([start, end], index) =>
      graph.apply("Slice", [
        x,
        constant(`start${index}`, start),
        constant(`end${index}`, end),
        constant(`axis${index}`, 1),
      ]),
    );
    const y = graph.apply("Mul", parts);
    const error = await lossError(model, y, [x], { x: noise([2, 6]) });
    return { error, pads: operators(graph).filter((op) => op === "Pad").length };
  };
  const tiled = await build([
    [3, 6],
    [0, 3],
  ]);
  expect(tiled.error).toBeLessThan(tolerance);
  expect(tiled.pads).toBe(0);
  const overlapping = await build([
    [0, 3],
    [2, 5],
  ]);
  expect(overlapping.error).toBeLessThan(tolerance);
  expect(overlapping.pads).toBe(2);
});

test("SiLU as Sigmoid and Mul", async () => {
  for (const isSwapped of [false, true]) {
    const { model, graph } = empty();
    const x = graph.addInput("x", "float32", [7]);
    const s = graph.apply("Sigmoid", [x]);
    const y = graph.apply("Mul", isSwapped ? [s, x] : [x, s]);
    expect(await lossError(model, y, [x], { x: noise([7]) })).toBeLessThan(tolerance);
  }
});

test.each(["Div", "Mul"])("GELU as exporters write it, with %s", async (op) => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [2, 5]);
  const scalar = (name: string, value: number) => graph.addInitializer(name, Tensor.scalar(value));
  const scaled = graph.apply(op, [x, scalar("root", op === "Div" ? Math.SQRT2 : Math.SQRT1_2)]);
  const c = graph.apply("Add", [graph.apply("Erf", [scaled]), scalar("one", 1)]);
  const y = graph.apply("Mul", [graph.apply("Mul", [x, c]), scalar("half", 0.5)]);
  expect(await lossError(model, y, [x], { x: noise([2, 5]) })).toBeLessThan(tolerance);
});

test("attention: queries, keys and values", async () => {
  const { model, graph } = empty();
  const inputs = ["q", "k", "v"].map((name) => graph.addInput(name, "float32", [2, name === "q" ? 3 : 5, 2]));
  const [q, k, v] = inputs;
  const scores = graph.apply("MatMul", [q, graph.apply("Transpose", [k], { attributes: { perm: [0, 2, 1] } })]);
  const y = graph.apply("MatMul", [graph.apply("Softmax", [scores]), v]);
  const feeds = { q: noise([2, 3, 2]), k: noise([2, 5, 2]), v: noise([2, 5, 2]) };
  expect(await lossError(model, y, inputs, feeds)).toBeLessThan(tolerance);
});

test("paths through shapes, comparisons and whole numbers carry no gradient", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [4]);
  const zero = graph.addInitializer("zero", Tensor.scalar(0));
  const mask = graph.apply("Cast", [graph.apply("Greater", [x, zero])], { attributes: { to: 1 } });
  const size = graph.apply("Cast", [graph.apply("Shape", [x])], { attributes: { to: 1 } });
  const y = graph.apply("Mul", [graph.apply("Mul", [x, mask]), size]);
  const feeds = { x: Tensor.float32([4], [0.5, -0.5, 1, -2]) };
  expect(await lossError(model, y, [x], feeds)).toBeLessThan(tolerance);
});

test("the gradient crosses a Cast to float16 and back in the types at hand", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [3]);
  const half = graph.apply("Cast", [x], { attributes: { to: 10 } });
  const y = graph.apply("Mul", [
    graph.apply("Cast", [half], { attributes: { to: 1 } }),
    graph.addInitializer("three", Tensor.scalar(3)),
  ]);
  const feeds = { x: noise([3]) };
  await inferShapes(model, {}, feeds);
  const seed = graph.addInitializer("seed", Tensor.float32([3], [1, 2, 4]));
  const gradient = buildGradients(model, { outputs: [{ value: y, seed }], wrt: [x] }).get(x)!;
  graph.outputs.push(gradient);
  expect((await runModel(model, feeds)).get(gradient.name)!.toNumbers()).toEqual([3, 6, 12]);
});

test("random numbers are not drawn again when a segment is recomputed", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [64]);
  const noisy = graph.apply("Mul", [
    graph.apply("Sin", [x]),
    graph.apply("RandomNormalLike", [x], { attributes: { dtype: 1 } }),
  ]);
  const end = graph.apply("Identity", [graph.apply("Exp", [graph.apply("Tanh", [noisy])])], { name: "end" });
  graph.outputs.push(end);
  await inferShapes(model, {}, { x: noise([64]) });
  const seed = graph.addInitializer("seed", Tensor.float32([64], new Float32Array(64).fill(1)));
  const gradient = buildGradients(model, { outputs: [{ value: end, seed }], wrt: [x], checkpoint: [end] }).get(x)!;
  graph.outputs.push(gradient);
  checkModel(model);
  expect(operators(graph).filter((op) => op === "RandomNormalLike").length).toBe(1);
  // dy/dx = y (1 - log(y)^2) cos(x) noise with noise = atanh(log(y)) / sin(x)
  const feeds = {
    x: Tensor.float32(
      [64],
      Array.from({ length: 64 }, () => 0.5 + random()),
    ),
  };
  const results = await runModel(model, feeds);
  const y = results.get(end.name)!.toNumbers();
  const expected = feeds.x.toNumbers().map((value, index) => {
    const log = Math.log(y[index]);
    return (y[index] * (1 - log ** 2) * Math.cos(value) * Math.atanh(log)) / Math.sin(value);
  });
  expect(relativeError(results.get(gradient.name)!.toNumbers(), expected)).toBeLessThan(1e-3);
});

test("a value that the outputs do not depend on has gradient zero", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [2]);
  const unread = graph.addInput("unread", "float32", [3]);
  expect(await lossError(model, x, [x, unread], { x: noise([2]), unread: noise([3]) })).toBeLessThan(tolerance);
});

test("operators off the path need no rule, and frozen inputs cost nothing", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [2, 3]);
  const other = graph.addInput("other", "float32", [3, 3]);
  const determinant = graph.apply("Det", [other]);
  const y = graph.apply("Mul", [graph.apply("MatMul", [x, other]), determinant]);
  expect(await lossError(model, y, [x], { x: noise([2, 3]), other: noise([3, 3]) })).toBeLessThan(tolerance);
  expect(operators(graph).filter((op) => op === "Gemm").length).toBe(1);
});

test.each([2, 3])("recomputation in %s segments leaves gradients as they were", async (segments) => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [3, 4]);
  const w = graph.addInput("w", "float32", [4, 4]);
  let y: Value = x;
  for (let layer = 0; layer < 6; layer++)
    y = graph.apply("Tanh", [graph.apply("MatMul", [y, w], { name: `layer${layer}` })]);
  const feeds = { x: noise([3, 4]), w: noise([4, 4]) };
  expect(await lossError(model, y, [x, w], feeds, { segments })).toBeLessThan(tolerance);
  expect([...graph.nodes].filter((node) => node.name.startsWith("recompute/layer")).length).toBeGreaterThan(0);
});

test("recomputation behind a given value", async () => {
  const { model, graph } = empty();
  const x = graph.addInput("x", "float32", [5]);
  const a = graph.apply("Exp", [graph.apply("Sin", [graph.apply("Tanh", [x])])]);
  const y = graph.apply("Mul", [graph.apply("Cos", [a]), a]);
  expect(await lossError(model, y, [x], { x: noise([5]) }, { checkpoint: [a] })).toBeLessThan(tolerance);
  expect([...graph.nodes].filter((node) => node.name.startsWith("recompute")).map((node) => node.opType)).toContain(
    "Add",
  );
});

describe("errors name the node and the way out", () => {
  const messageOf = (action: () => unknown): string => {
    try {
      action();
    } catch (error) {
      expect(error).toBeInstanceOf(InputError);
      return (error as InputError).message;
    }
    throw new Error("nothing was thrown");
  };

  function shaped(graph: Graph, op: string, x: Value): Value {
    const y = graph.apply(op, [x], { name: "here" });
    y.type = tensorType("float32", []);
    return y;
  }

  test("an operator without a rule", () => {
    const { model, graph } = empty(18);
    const x = graph.addInput("x", "float32", [2, 2]);
    const y = shaped(graph, "Det", x);
    const message = messageOf(() => buildGradients(model, { outputs: [{ value: y }], wrt: [x] }));
    expect(message).toMatch(/Det node "here".*opset 18.*no gradient.*Export/);
  });

  test("control flow on the path", () => {
    const { model, graph } = empty();
    const x = graph.addInput("x", "float32", []);
    const branch = new Graph("branch");
    const inner = branch.apply("Neg", [x], { name: "inner" });
    branch.outputs.push(inner);
    const condition = graph.addInput("condition", "bool", []);
    const node = graph.addNode("If", [condition], {
      name: "choice",
      attributes: { then_branch: { kind: "graph", value: branch }, else_branch: { kind: "graph", value: branch } },
    });
    node.output().type = tensorType("float32", []);
    const message = messageOf(() => buildGradients(model, { outputs: [{ value: node.output() }], wrt: [x] }));
    expect(message).toMatch(/If node "choice".*control flow/);
  });

  test("an unknown shape, a loss that is not a scalar, a seed of another shape, an old opset", () => {
    const { model, graph } = empty();
    const x = graph.addInput("x", "float32", ["n"]);
    const request = (value: Value, seed?: Value) => ({ outputs: [{ value, ...(seed && { seed }) }], wrt: [x] });
    expect(messageOf(() => buildGradients(model, request(x)))).toMatch(/value "x".*shape is not known.*inferShapes/);
    x.type = tensorType("float32", [2]);
    expect(messageOf(() => buildGradients(model, request(x)))).toMatch(/value "x".*expected one element, got \[2\]/);
    const seed = graph.addInput("seed", "float32", [3]);
    expect(messageOf(() => buildGradients(model, request(x, seed)))).toMatch(/expected \[2\], got \[3\]/);
    model.opsets.set("", 12);
    expect(messageOf(() => buildGradients(model, request(x)))).toMatch(/expected opset 13 or later, got opset 12/);
  });

  test("a Slice whose bounds are not constant", () => {
    const { model, graph } = empty();
    const x = graph.addInput("x", "float32", [4]);
    const start = graph.addInput("start", "int64", [1]);
    const end = graph.addInitializer("end", Tensor.int64([1], [4]));
    const node = graph.addNode("Slice", [x, start, end], { name: "cut", outputCount: 0 });
    node.addOutput(outputValue("part"));
    node.output().type = tensorType("float32", [1]);
    const message = messageOf(() => buildGradients(model, { outputs: [{ value: node.output() }], wrt: [x] }));
    expect(message).toMatch(/Slice node "cut".*input 1 \("start"\) must be constant.*specialize/);
  });
});
