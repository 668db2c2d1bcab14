import { type Graph, type Model, runModel, Tensor } from "@quad-lora/onnx";
import { beforeAll, describe, expect, test } from "vitest";
import { buildModel, maxRelative, randomTensor } from "../../../../test/helpers/models.ts";
import type { QuantizationPoint } from "../quantizable/points.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import {
  type Encoding,
  encodingFromRange,
  encodingRange,
  fakeQuantize,
  weightEncoding,
} from "../quantization/index.ts";
import { buildSimulation, encodingInputs, type SimulationOptions } from "./simulation-graph.ts";

const slots = { strengthInput: "unet.lora_strength", slots: [] };
const x = randomTensor([3, 4], 1);
const time = Tensor.float32([1], Float32Array.of(700));
const weights = [randomTensor([4, 5], 2), randomTensor([5, 2], 3)];

/** Two linear layers with a Relu between them, plus cos(0.3 t): a denoiser in small. */
function smallModel(): Model {
  const model = buildModel((graph: Graph) => {
    const input = graph.addInput("x", "float32", [3, 4]);
    const step = graph.addInput("t", "float32", [1]);
    const product = (name: string, value: typeof input, weight: Tensor) =>
      graph.apply("MatMul", [value, graph.addInitializer(`${name}.weight`, weight)], { name: `/${name}/MatMul` });
    const hidden = product("first", input, weights[0]);
    const positive = graph.apply("Relu", [hidden], { name: "/act/Relu" });
    const angle = graph.apply("Mul", [step, graph.addInitializer("frequency", Tensor.scalar(0.3))], {
      name: "/time/Mul",
    });
    const wave = graph.apply("Cos", [angle], { name: "/time/Cos" });
    const sum = graph.apply("Add", [product("second", positive, weights[1]), wave], { name: "/Add" });
    return { y: { value: sum } };
  });
  model.opsets.set("", 17);
  model.irVersion = 8;
  return model;
}

const options: SimulationOptions = { placement: "npu", weightBits: 8, weightMethod: "min-max" };

/** Runs a simulated graph with an encoding for every point. */
async function run(simulation: ReturnType<typeof buildSimulation>, encodingOf: (point: QuantizationPoint) => Encoding) {
  const encodings = simulation.points.map(encodingOf);
  const vector = (pick: (encoding: Encoding) => number) =>
    Tensor.float32([encodings.length], Float32Array.from(encodings, pick));
  const outputs = await runModel(simulation.model, {
    x,
    t: time,
    [encodingInputs.scale]: vector(({ scale }) => scale[0]),
    [encodingInputs.low]: vector((encoding) => encodingRange(encoding).min),
    [encodingInputs.high]: vector((encoding) => encodingRange(encoding).max),
  });
  return outputs.get("y")!.toFloat32();
}

const affine = (min: number, max: number, bits: 8 | 16) =>
  encodingFromRange(min, max, { bits, signed: false, symmetric: false });

function matMul(a: Float32Array, b: Float32Array, [rows, inner, columns]: [number, number, number]): Float32Array {
  const result = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (let i = 0; i < inner; i++) sum += a[row * inner + i] * b[i * columns + column];
      result[row * columns + column] = sum;
    }
  }
  return result;
}

const rounded = (values: Float32Array, encoding: Encoding) => fakeQuantize(values, [values.length], encoding);
const roundedWeight = (index: number) => {
  const { dims } = weights[index];
  const values = weights[index].toFloat32();
  return fakeQuantize(values, [...dims], weightEncoding(values, [...dims], { bits: 8, axis: 1, method: "min-max" }));
};

describe("what can be quantized", () => {
  test("layers, activations, and phases apart from them", () => {
    const { layers, activations, phases } = findQuantizable(smallModel(), slots);
    expect(layers.map(({ name, kind }) => [name, kind])).toEqual([
      ["first", "weighted"],
      ["second", "weighted"],
    ]);
    expect(phases.map((value) => value.producer?.opType ?? value.name)).toEqual(["t", "Mul"]);
    const operators = activations.map((value) => value.producer?.opType ?? value.name);
    expect(operators.sort()).toEqual(["Add", "Cos", "MatMul", "MatMul", "Relu", "x"]);
  });
});

describe("the simulated graph against rounding by hand", () => {
  let exact: Float32Array;
  const wave = Math.cos(Math.fround(0.3) * 700);
  beforeAll(async () => {
    exact = (await runModel(smallModel(), { x, t: time })).get("y")!.toFloat32();
  });

  test("cpu: only what layers read is rounded, and their weights", async () => {
    const simulation = buildSimulation(smallModel(), slots, { ...options, placement: "cpu" });
    expect(simulation.points.map(({ name, layer }) => [name, layer])).toEqual([
      ["first#0", "first"],
      ["second#0", "second"],
    ]);
    const encodings = [affine(-2, 1.5, 8), affine(0, 3, 8)];
    const got = await run(simulation, ({ name }) => encodings[name === "first#0" ? 0 : 1]);
    const hidden = matMul(rounded(x.toFloat32(), encodings[0]), roundedWeight(0), [3, 4, 5]);
    const positive = rounded(
      hidden.map((value) => Math.max(0, value)),
      encodings[1],
    );
    const expected = matMul(positive, roundedWeight(1), [3, 5, 2]).map((value) => value + wave);
    expect(maxRelative(got, expected)).toBeLessThan(1e-5);
    expect(maxRelative(got, exact)).toBeGreaterThan(1e-3);
  });

  test("npu: every activation is rounded, the graph's output too", async () => {
    const simulation = buildSimulation(smallModel(), slots, options);
    const output = affine(-4, 4, 8);
    const wide = affine(-64, 64, 16);
    const got = await run(simulation, ({ name }) => (name === "y" ? output : wide));
    for (const value of got)
      expect(Math.abs(value / output.scale[0] - Math.round(value / output.scale[0]))).toBeLessThan(1e-4);
    expect(Math.max(...got)).toBeLessThanOrEqual(encodingRange(output).max);
  });

  test("16 bits on tight ranges come close to float with rounded weights", async () => {
    const simulation = buildSimulation(smallModel(), slots, options);
    const got = await run(simulation, () => affine(-12, 12, 16));
    const hidden = matMul(x.toFloat32(), roundedWeight(0), [3, 4, 5]).map((value) => Math.max(0, value));
    const expected = matMul(hidden, roundedWeight(1), [3, 5, 2]).map((value) => value + wave);
    expect(maxRelative(got, expected)).toBeLessThan(1e-3);
  });

  test("phases stay as they are, unless they are asked for", async () => {
    const coarse = affine(0, 1000, 8);
    const fine = affine(-12, 12, 16);
    const encodingOf = ({ observed }: QuantizationPoint) =>
      observed === "t" || observed.includes("time/Mul") ? coarse : fine;
    const kept = await run(buildSimulation(smallModel(), slots, options), encodingOf);
    const simulation = buildSimulation(smallModel(), slots, { ...options, roundPhases: true });
    expect(simulation.points.length).toBe(buildSimulation(smallModel(), slots, options).points.length + 2);
    const turned = await run(simulation, encodingOf);
    const step = coarse.scale[0];
    const grid = (value: number) => Math.round(value / step) * step;
    const angle = grid(Math.fround(0.3) * grid(700));
    // Both differ from the exact result by rounded weights; from each other by the turn of the angle.
    for (const [index, value] of turned.entries()) {
      expect(value - kept[index]).toBeCloseTo(Math.cos(angle) - wave, 2);
    }
    expect(Math.abs(Math.cos(angle) - wave)).toBeGreaterThan(0.05);
  });

  test("a scalar stays one when it is rounded", async () => {
    const model = buildModel((graph) => {
      const step = graph.addInput("timestep", "float32", []);
      const wave = graph.apply("Sin", [step], { name: "/Sin" });
      wave.type = { kind: "tensor", dataType: "float32", shape: [] };
      return { y: { value: wave } };
    });
    model.opsets.set("", 17);
    const simulation = buildSimulation(model, slots, { ...options, roundPhases: true });
    expect(simulation.points.map(({ name }) => name)).toEqual(["y", "timestep"]);
    const feeds = {
      timestep: Tensor.scalar(7.3),
      [encodingInputs.scale]: Tensor.float32([2], [0.5, 0.5]),
      [encodingInputs.low]: Tensor.float32([2], [-1, 0]),
      [encodingInputs.high]: Tensor.float32([2], [1, 100]),
    };
    const [output] = (await runModel(simulation.model, feeds)).values();
    expect(output.dims).toEqual([]);
    expect(output.toFloat32()[0]).toBe(Math.round(Math.sin(7.5) / 0.5) * 0.5);
  });
});
