import { checkModel, type Graph, Model, runModel, Tensor, tensorType } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { expect, test } from "vitest";
import { exactLayer, onGrid, roundedWeight, shareOfAllowed, unrounded } from "../../../../test/helpers/exact-layer.ts";
import { randomTensor } from "../../../../test/helpers/models.ts";
import { simulationSettings } from "../model/open-with-graph.ts";
import { layerEncoding } from "../quantizable/weights.ts";
import { encodingFromRange } from "../quantization/index.ts";
import { buildSimulation } from "../simulate/simulation-graph.ts";
import { targetNamed } from "../targets/index.ts";
import { buildQuantizedGraph } from "./quantized-graph.ts";
import { encodingFeeds, exactProducts } from "./testing.ts";

type LayerForm = (graph: Graph, name: string) => { dims: number[]; output: number[] };

const weight = (graph: Graph, dims: number[], seed: number) =>
  graph.addInitializer("weight", randomTensor(dims, seed, 0.3));

function conv(kernel: number[], output: number[], attributes: Record<string, number | number[]>, group = 1): LayerForm {
  return (graph, name) => {
    const inputs = [graph.inputs[0], weight(graph, kernel, 3), weight(graph, [kernel[0]], 4)];
    const node = graph.addNode("Conv", inputs, { name: `/${name}/Conv`, attributes: { ...attributes, group } });
    node.output().type = tensorType("float32", output);
    graph.outputs.push(node.output());
    return { dims: [2, 6, 9, 7], output };
  };
}

function gemm(transB: 0 | 1, hasBias: boolean): LayerForm {
  return (graph, name) => {
    const inputs = [graph.inputs[0], weight(graph, transB ? [10, 40] : [40, 10], 5)];
    if (hasBias) inputs.push(weight(graph, [10], 6));
    const node = graph.addNode("Gemm", inputs, { name: `/${name}/Gemm`, attributes: { transB } });
    node.output().type = tensorType("float32", [5, 10]);
    graph.outputs.push(node.output());
    return { dims: [5, 40], output: [5, 10] };
  };
}

function matmul(bias: "none" | "before" | "after" | "read twice"): LayerForm {
  return (graph, name) => {
    const product = graph.apply("MatMul", [graph.inputs[0], weight(graph, [40, 10], 7)], { name: `/${name}/MatMul` });
    product.type = tensorType("float32", [2, 5, 10]);
    graph.outputs.push(product);
    if (bias !== "none") {
      const vector = weight(graph, [10], 8);
      const sum = graph.apply("Add", bias === "before" ? [vector, product] : [product, vector], {
        name: `/${name}/Add`,
      });
      sum.type = product.type;
      graph.outputs[0] = sum;
      if (bias === "read twice") {
        const twice = graph.apply("Neg", [product], { name: "/twice" });
        twice.type = product.type;
        graph.outputs.push(twice);
      }
    }
    return { dims: [2, 5, 40], output: [2, 5, 10] };
  };
}

// Output sizes by the operator's definition: floor((in + pads - dilation * (kernel - 1) - 1) / stride) + 1.
const forms: [string, LayerForm, dims: number[]][] = [
  ["convolution 3x3", conv([8, 6, 3, 3], [2, 8, 9, 7], { pads: [1, 1, 1, 1] }), [2, 6, 9, 7]],
  [
    "strides, more padding below",
    conv([8, 6, 3, 3], [2, 8, 5, 4], { strides: [2, 2], pads: [0, 1, 2, 1] }),
    [2, 6, 9, 7],
  ],
  ["dilations", conv([4, 6, 3, 2], [2, 4, 5, 5], { dilations: [2, 2] }), [2, 6, 9, 7]],
  ["1x1", conv([8, 6, 1, 1], [2, 8, 9, 7], {}), [2, 6, 9, 7]],
  ["1x1 with strides", conv([8, 6, 1, 1], [2, 8, 5, 4], { strides: [2, 2] }), [2, 6, 9, 7]],
  ["groups", conv([8, 3, 3, 3], [2, 8, 9, 7], { pads: [1, 1, 1, 1] }, 2), [2, 6, 9, 7]],
  ["Gemm", gemm(0, true), [5, 40]],
  ["Gemm with a transposed weight", gemm(1, true), [5, 40]],
  ["Gemm without bias", gemm(1, false), [5, 40]],
  ["MatMul", matmul("none"), [2, 5, 40]],
  ["MatMul, then bias", matmul("after"), [2, 5, 40]],
  ["MatMul, bias first", matmul("before"), [2, 5, 40]],
  ["MatMul whose product is read again", matmul("read twice"), [2, 5, 40]],
];

const cases = forms.flatMap(([label, form, dims]) =>
  ([8, 4] as const).flatMap((weightBits) =>
    [true, false].map((isNarrow) => ({ label, form, dims, weightBits, isNarrow })),
  ),
);

test.each(cases)("$label, $weightBits-bit weights, narrow: $isNarrow", async ({ form, dims, weightBits, isNarrow }) => {
  const model = new Model();
  const { graph } = model;
  graph.addInput("x", "float32", dims);
  graph.addInput("strength", "float32", ["rank"]);
  form(graph, "block.layer");
  graph.outputs[0].name = "y";
  const slots: SlotsFile["components"][string] = { strengthInput: "strength", slots: [] };
  const weightMethod = "min-max";
  const simulation = buildSimulation(model, slots, { placement: "cpu", weightBits, weightMethod });
  expect(simulation.points.map(({ name }) => name)).toEqual(["block.layer#0"]);
  // A zero point in neither half of either byte, and a range that clips a part of the values.
  const encoding = encodingFromRange(-1.3, 2.1, { bits: isNarrow ? 8 : 16, signed: false, symmetric: false });
  const points = new Map([["block.layer#0", encoding]]);
  const compiled = await buildQuantizedGraph(model, slots, {
    points,
    slots: new Map(),
    adapterBits: 8,
    weightBits,
    weightMethod,
    narrowLayers: new Set(isNarrow ? ["block.layer"] : []),
    target: targetNamed("cpu"),
    rank: null,
  });
  checkModel(compiled);
  const isBlock = !isNarrow && weightBits === 4 && dims.length < 4;
  const operators = new Set([...compiled.graph.nodes].map(({ opType }) => opType));
  expect(operators.has("MatMulNBits")).toBe(isBlock);

  const inputs = { x: randomTensor(dims, 1), strength: Tensor.float32([0], []) };
  const simulated = await runModel(simulation.model, { ...inputs, ...encodingFeeds(points) }, simulationSettings);
  const found = await runModel(compiled, inputs, exactProducts);
  const [a, b] = [found, simulated].map((outputs) => outputs.get("y")!);
  expect(a.dims).toEqual(b.dims);

  const [layer] = [...graph.nodes].filter(({ opType }) => ["Conv", "Gemm", "MatMul"].includes(opType));
  const tensor = layer.input(1).initializer!;
  const right = roundedWeight(tensor, layerEncoding(layer.input(1), layer, { weightBits, weightMethod }));
  const bias = [...graph.initializers].find(({ initializer }) => initializer!.dims.length === 1);
  const biasValues = bias?.initializer?.toFloat32() ?? null;
  const exact = exactLayer(layer, onGrid(inputs.x, encoding), right, biasValues);
  expect(shareOfAllowed(b.toFloat32(), exact, "float sums")).toBeLessThanOrEqual(1);
  // What stays float where it is wide rounds nothing; groups have no integer kernel.
  const how = operators.has("MatMulIntegerToFloat") ? (isNarrow ? "integer sums" : "byte planes") : "float sums";
  const reference = isBlock ? exactLayer(layer, unrounded(inputs.x), right, biasValues) : exact;
  expect(shareOfAllowed(a.toFloat32(), reference, how)).toBeLessThanOrEqual(1);
});
