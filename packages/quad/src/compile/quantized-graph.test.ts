import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import {
  checkModel,
  cloneModel,
  createSession,
  type dataTypes,
  encodeModel,
  extractModel,
  loadModel,
  type Model,
  type Node,
  runModel,
  runSession,
  saveModel,
  type Tensor,
  type Value,
} from "@quad-lora/onnx";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { exactLayer, onGrid, roundedWeight, shareOfAllowed, unrounded } from "../../../../test/helpers/exact-layer.ts";
import { findLayers } from "../layers/find-layers.ts";
import { simulationSettings } from "../model/open-with-graph.ts";
import { layerInputPoint } from "../quantizable/points.ts";
import { layerEncoding } from "../quantizable/weights.ts";
import { buildQuantizedGraph } from "./quantized-graph.ts";
import {
  adapterFeeds,
  type Bench,
  buildBoth,
  callInputs,
  encodingFeeds,
  exactProducts,
  openAsWritten,
  output,
  pocketBench,
  rank,
  withWideAdapters,
} from "./testing.ts";

let bench: Bench;
let folder: string;
beforeAll(async () => {
  bench = await pocketBench();
  folder = mkdtempSync(join(tmpdir(), "quad-compile-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const everyOther = (_: string, index: number) => index % 2 === 0;
const largestDifference = (a: Float32Array, b: Float32Array) =>
  a.reduce((most, value, index) => Math.max(most, Math.abs(value - b[index])), 0);
const power = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
/** Decibels of `reference` over `values - reference`. */
const signalToNoise = (values: Float32Array, reference: Float32Array) =>
  10 * Math.log10(power(reference) / power(values.map((value, index) => value - reference[index])));
const count = (model: Model, operator: string) =>
  [...model.graph.nodes].filter((node) => node.operator === operator).length;

describe("npu", () => {
  // Both graphs run the same float kernels on the same grids when pairs are computed as written: what is left is a sum
  // that falls on the other side of a rounding boundary.
  test.each([8, 4] as const)("computes what the simulation does, %i-bit weights", async (weightBits) => {
    const { simulation, compiled, encodings } = await buildBoth(bench, {
      placement: "npu",
      weightBits,
      narrow: everyOther,
    });
    checkModel(compiled);
    const simulated = await openAsWritten(simulation.model);
    const session = await openAsWritten(compiled);
    const step = encodings.get("out_sample")!.scale[0];
    for (const adapter of weightBits === 8 ? [null, "flat", "sketch"] : ["erase"]) {
      const expected = await output(simulated, {
        ...callInputs(2),
        ...adapterFeeds(bench, adapter, "values"),
        ...encodingFeeds(encodings),
      });
      const found = await output(session, { ...callInputs(2), ...adapterFeeds(bench, adapter, "codes", rank) });
      expect(largestDifference(found, expected)).toBeLessThanOrEqual(step);
    }
    await simulated.release();
    await session.release();
  });

  test("shapes are static, weights and adapter inputs integers, activations 16 bits and 8 where narrow", async () => {
    const { compiled, simulation, narrowLayers } = await buildBoth(bench, {
      placement: "npu",
      weightBits: 8,
      narrow: everyOther,
    });
    for (const input of compiled.graph.inputs) {
      expect(input.concreteShape).not.toBeNull();
      if (/lora_[AB]$/.test(input.name)) expect(input.dataType).toBe("int8");
    }
    expectIntegerWeights(compiled, "int8");
    const pairs = [...compiled.graph.nodes].filter(({ opType }) => opType === "QuantizeLinear");
    const narrowInputs = simulation.layers
      .filter(({ name }) => narrowLayers.has(name))
      .reduce((total, { activations }) => total + activations.length, 0);
    expect(pairs.filter((node) => node.output().dataType === "uint8").length).toBe(narrowInputs);
    expect(pairs.every((node) => node.output().uses.every((use) => use.node.opType === "DequantizeLinear"))).toBe(true);
    // Each value that a kernel reads or writes has a pair; what only moves data has one on either side.
    for (const node of compiled.graph.nodes) {
      if (
        ["Reshape", "Transpose", "Slice"].includes(node.opType) &&
        node.input(0).producer?.opType === "DequantizeLinear"
      ) {
        if (node.input(0).producer!.input(0).producer?.opType !== "QuantizeLinear") continue;
        expect(
          node.outputs.every((value) => value!.consumers.every((reader) => reader.opType === "QuantizeLinear")),
        ).toBe(true);
      }
    }
    // ONNX Runtime takes it as it is, with all its fusions.
    const outputs = await runModel(compiled, { ...callInputs(1), ...adapterFeeds(bench, "flat", "codes") });
    expect([...outputs.values()][0].toFloat32().every(Number.isFinite)).toBe(true);
  });
});

describe("cpu", () => {
  // A network of rounded values cannot be compared at its end: one sum on the other side of a rounding boundary changes
  // what follows, and so do the two runs' roundings further on. So each layer is given the simulation's own input. Nor
  // are the two compared with each other: where an input lies between two codes either may be right, and after upsampling
  // it is four operands of a sum. Both are held to the exact result.
  test.each([
    ["narrow layers", 8 as const, true],
    ["narrow layers, 4-bit weights", 4 as const, true],
    ["wide layers", 8 as const, false],
    ["wide layers, 4-bit weights", 4 as const, false],
  ])("%s: simulation and compiled graph give the exact result up to rounding", async (_, weightBits, isNarrow) => {
    const { simulation, compiled, encodings, options } = await buildBoth(bench, {
      placement: "cpu",
      weightBits,
      narrow: () => isNarrow,
    });
    checkModel(compiled);
    const twins = compiled.graph.valuesByName();
    const layers = layersOf(bench.prepared, simulation.layers).filter(({ weight }) => weight || isNarrow);
    for (const layer of layers) {
      // A product's factor is part of it in the compiled graph.
      if (twins.has(layer.output)) layer.factor = 1;
      else layer.output = layer.scaledOutput;
    }
    const inputNames = new Set(layers.flatMap(({ inputs }) => inputs));
    const outputNames = [...new Set(layers.map(({ output: name }) => name))].filter((name) => !inputNames.has(name));
    const watched = cloneModel(simulation.model);
    const values = watched.graph.valuesByName();
    const fed = new Set(watched.graph.inputs.map(({ name }) => name));
    watched.graph.outputs.length = 0;
    for (const name of [...inputNames, ...outputNames])
      if (!fed.has(name)) watched.graph.outputs.push(values.get(name)!);
    // Not "all": where ONNX Runtime 1.30 lays convolutions out in blocks of 8 channels (no AVX-512), the output of conv_in, which
    // reads 9 and is added to, cannot also be an output of the graph: the process ends.
    const session = await createSession(watched, { ...simulationSettings, graphOptimizationLevel: "extended" });
    const feeds = { ...callInputs(2), ...adapterFeeds(bench, "flat", "values"), ...encodingFeeds(encodings) };
    const seen = await runSession(session, feeds);
    await session.release();

    const pick = (names: Iterable<string>) => [...names].map((name) => twins.get(name)!);
    const alone = extractModel(compiled, pick(inputNames), pick(outputNames));
    const given = Object.fromEntries(
      [...inputNames].map((name) => [name, seen.get(name) ?? feeds[name as keyof typeof feeds]]),
    );
    const found = await runModel(alone, given as Record<string, Tensor>, exactProducts);
    for (const { name, node, inputs, output: outputName, weight, bias, factor } of layers) {
      if (inputNames.has(outputName)) continue;
      const [left, other] = inputs.map((input, index) =>
        onGrid(given[input] as Tensor, encodings.get(layerInputPoint(name, index))!),
      );
      const right = weight ? roundedWeight(weight.initializer!, layerEncoding(weight, node, options)) : other;
      const exact = exactLayer(node, left, right, bias, factor);
      const [simulated, integer] = [seen, found].map((outputs) => outputs.get(outputName)!.toFloat32());
      expect(shareOfAllowed(simulated, exact, "float sums"), `${name}, simulated`).toBeLessThanOrEqual(1);
      // 4-bit weights that are wide, convolutions excepted, are multiplied by the input as it is.
      const isFloat = !isNarrow && weightBits === 4 && node.opType !== "Conv";
      const share = isFloat
        ? shareOfAllowed(integer, exactLayer(node, unrounded(given[inputs[0]] as Tensor), right, bias), "float sums")
        : shareOfAllowed(integer, exact, isNarrow ? "integer sums" : "byte planes");
      expect(share, `${name}, compiled`).toBeLessThanOrEqual(1);
    }
    expect(found.size).toBeGreaterThan(60);
  });

  // Past the first sum on the other side of a rounding boundary the two round differently, and how soon that comes depends on
  // the processor. At worst their errors are independent: the difference then has twice the power of one, 3 dB. The rounding of
  // the weights is common to both, so it stays below that. Its own error may not have twice the power of the simulation's either.
  test("lies as close to the simulation and to full precision as independent rounding does", async () => {
    const { simulation, compiled, encodings } = await buildBoth(bench, {
      placement: "cpu",
      weightBits: 8,
      narrow: () => true,
    });
    const simulated = await openAsWritten(simulation.model);
    const exact = await createSession(bench.prepared);
    const session = await createSession(compiled, exactProducts);
    for (const adapter of [null, "sketch"]) {
      const inputs = { ...callInputs(2), ...adapterFeeds(bench, adapter, "values") };
      const expected = await output(simulated, { ...inputs, ...encodingFeeds(encodings) });
      const full = await output(exact, inputs);
      const found = await output(session, { ...callInputs(2), ...adapterFeeds(bench, adapter, "codes") });
      const lost = signalToNoise(expected, full);
      expect(signalToNoise(found, expected)).toBeGreaterThan(lost - 3);
      expect(signalToNoise(found, full)).toBeGreaterThan(lost - 3);
    }
    await Promise.all([simulated, exact, session].map((opened) => opened.release()));
  });

  test("any rank: none, zeros and zero padding add nothing", async () => {
    const { compiled } = await buildBoth(bench, { placement: "cpu", weightBits: 8, narrow: everyOther });
    const session = await createSession(compiled, exactProducts);
    const run = (feeds: Record<string, Tensor>) => output(session, { ...callInputs(1), ...feeds });
    const base = await run(adapterFeeds(bench, null, "codes", 0));
    const zeros = await run(adapterFeeds(bench, null, "codes", 5));
    const bound = await run(adapterFeeds(bench, "erase", "codes"));
    const again = await run(adapterFeeds(bench, null, "codes", 0));
    expect(zeros).toEqual(base);
    expect(again).toEqual(base);
    expect(signalToNoise(bound, base)).toBeLessThan(30);
    await session.release();
  });

  test("ONNX Runtime runs the integer kernels that the file names, and keeps weights as integers", async () => {
    const { compiled, simulation, narrowLayers } = await buildBoth(bench, {
      placement: "cpu",
      weightBits: 8,
      narrow: everyOther,
    });
    expectIntegerWeights(compiled, "int8", "uint8");
    const optimized = join(folder, "optimized.onnx");
    const session = await createSession(compiled, { ...exactProducts, optimizedModelFilePath: optimized });
    await session.release();
    const dumped = loadModel(optimized);
    for (const operator of ["com.microsoft.MatMulIntegerToFloat", "QuantizeLinear"]) {
      expect(count(dumped, operator)).toBe(count(compiled, operator));
    }
    const products = simulation.layers.filter(({ name, kind }) => kind === "weighted" || narrowLayers.has(name));
    expect(count(compiled, "com.microsoft.MatMulIntegerToFloat")).toBe(products.length);
    expectIntegerWeights(dumped, "int8", "uint8");
  });
});

test("attention whose products are float runs as one operator", async () => {
  const softmaxes = count(bench.prepared, "Softmax");
  const { compiled, simulation, encodings } = await buildBoth(bench, {
    placement: "cpu",
    weightBits: 8,
    narrow: () => false,
  });
  expect(count(compiled, "com.microsoft.MultiHeadAttention")).toBe(softmaxes);
  expect(count(compiled, "Softmax")).toBe(0);
  const fused = [...compiled.graph.nodes].filter(({ opType }) => opType === "MultiHeadAttention");
  for (const node of fused) {
    expect(node.int("num_heads")).toBe(4);
    expect(node.input(0).concreteShape!.length).toBe(3);
    // Nothing but its products was between the layers: heads are neither split nor joined any more.
    expect(node.inputs.every((value) => value!.producer?.opType === "Add")).toBe(true);
  }
  const simulated = await openAsWritten(simulation.model);
  const session = await createSession(compiled, exactProducts);
  const inputs = callInputs(2);
  const expected = await output(simulated, {
    ...inputs,
    ...adapterFeeds(bench, "erase", "values"),
    ...encodingFeeds(encodings),
  });
  // The simulation's 16-bit rounding of the products' inputs is what is left.
  expect(
    signalToNoise(await output(session, { ...inputs, ...adapterFeeds(bench, "erase", "codes") }), expected),
  ).toBeGreaterThan(70);
  await simulated.release();
  await session.release();

  const half = await buildBoth(bench, {
    placement: "cpu",
    weightBits: 8,
    narrow: (name) => /attn1\.MatMul$/.test(name),
  });
  expect(count(half.compiled, "Softmax")).toBe(softmaxes / 2);
});

test("integer weights make a quarter of the file, and 4-bit ones less", async () => {
  const size = async (model: Model, name: string) => {
    await saveModel(model, join(folder, name), { externalData: "never" });
    return statSync(join(folder, name)).size;
  };
  const full = await size(bench.prepared, "full.onnx");
  const narrow = () => true;
  const cpu = await buildBoth(bench, { placement: "cpu", weightBits: 8, narrow });
  const npu = await buildBoth(bench, { placement: "npu", weightBits: 8, narrow });
  const npu4 = await buildBoth(bench, { placement: "npu", weightBits: 4, narrow });
  const weights = bench.prepared.graph;
  const quarter = [...weights.initializers].reduce((sum, value) => sum + value.initializer!.byteLength, 0) / 4;
  // Beside the weights: scales, index tables, and the nodes themselves (for a small model the larger part).
  expect(await size(cpu.compiled, "cpu.onnx")).toBeLessThan(quarter + 2.2e6);
  const bytes = await size(npu.compiled, "npu.onnx");
  expect(bytes).toBeLessThan(quarter + 3.3e6);
  expect(bytes - (await size(npu4.compiled, "npu4.onnx"))).toBeGreaterThan(0.45 * quarter);
  expect(full).toBeGreaterThan(3.9 * quarter);
});

test("16-bit adapter inputs", async () => {
  const wide = await withWideAdapters(bench);
  for (const placement of ["cpu", "npu"] as const) {
    const { simulation, compiled, encodings } = await buildBoth(wide, {
      placement,
      weightBits: 8,
      narrow: () => false,
    });
    for (const input of compiled.graph.inputs) if (/lora_[AB]$/.test(input.name)) expect(input.dataType).toBe("int16");
    const simulated = await openAsWritten(simulation.model);
    const session = await openAsWritten(compiled);
    const inputs = callInputs(2);
    const feeds = { ...inputs, ...adapterFeeds(wide, "flat", "values"), ...encodingFeeds(encodings) };
    const found = await output(session, { ...inputs, ...adapterFeeds(wide, "flat", "codes") });
    // On cpu wide layers do not round: what is left is the simulation's own 16-bit noise.
    expect(signalToNoise(found, await output(simulated, feeds))).toBeGreaterThan(70);
    await simulated.release();
    await session.release();
  }
});

test("the prepared graph stays as it is, the same input gives the same bytes", async () => {
  const before = encodeModel(bench.prepared);
  const { compiled, options } = await buildBoth(bench, { placement: "cpu", weightBits: 8, narrow: everyOther });
  expect(Buffer.compare(encodeModel(bench.prepared), before)).toBe(0);
  const again = await buildQuantizedGraph(bench.prepared, bench.slots, options);
  expect(Buffer.compare(encodeModel(again), encodeModel(compiled))).toBe(0);
});

test("a profile of another graph is refused by the name of what it lacks", async () => {
  const { options } = await buildBoth(bench, { placement: "cpu", weightBits: 8, narrow: () => true });
  const points = new Map(options.points);
  points.delete("conv_in#0");
  const missingPoint = buildQuantizedGraph(bench.prepared, bench.slots, { ...options, points });
  await expect(missingPoint).rejects.toThrow(InputError);
  await expect(missingPoint).rejects.toThrow(/conv_in#0/);
  const missingSlot = buildQuantizedGraph(bench.prepared, bench.slots, { ...options, slots: new Map() });
  await expect(missingSlot).rejects.toThrow(/no scales for this layer's adapter/);
});

/** Everything that is as large as a weight is of these types. */
function expectIntegerWeights(model: Model, ...types: (keyof typeof dataTypes)[]): void {
  const isWeight = ({ name, initializer }: Value) =>
    initializer!.elementCount >= 2048 && !/_scale$|_bias$|^quad\.(zeros|outside|columns)/.test(name);
  const largest = [...model.graph.initializers].filter(isWeight);
  expect(largest.length).toBeGreaterThan(60);
  const others = largest.filter(({ initializer }) => !types.includes(initializer!.dataType));
  expect(others.map(({ name }) => name)).toEqual([]);
}

interface WatchedLayer {
  name: string;
  node: Node;
  inputs: string[];
  output: string;
  /** Products: the name behind the factor that follows. */
  scaledOutput: string;
  factor: number;
  weight: Value | null;
  bias: Float32Array | null;
}

/** What each layer reads and gives, bias included. */
function layersOf(
  prepared: Model,
  simulated: { name: string; kind: string; nodes: { name: string }[] }[],
): WatchedLayer[] {
  const byName = new Map(findLayers(prepared).layers.map((layer) => [layer.name, layer]));
  const nodes = new Map([...prepared.graph.nodes].map((node) => [node.name, node]));
  return simulated.map(({ name, kind, nodes: [{ name: nodeName }] }) => {
    if (kind === "weighted") {
      const [{ node, weight, output: value }] = byName.get(name)!.calls;
      const inputs = [node.input(0).name];
      const bias = node.inputs[2]?.initializer ?? (value === node.output() ? null : constantOf(value.producer!));
      const names = { name, inputs, output: value.name, scaledOutput: value.name };
      return { ...names, node, factor: 1, weight, bias: bias?.toFloat32() ?? null };
    }
    const node = nodes.get(nodeName)!;
    const inputs = [node.input(0).name, node.input(1).name];
    const [reader] = node.output().consumers;
    const names = { name, inputs, output: node.output().name, scaledOutput: reader.output().name };
    const factor = reader.opType === "Mul" ? constantOf(reader)!.toFloat32()[0] : 1;
    return { ...names, node, factor, weight: null, bias: null };
  });
}

/** The constant that a node with two inputs reads. */
function constantOf(node: Node): Tensor | null {
  return node.inputs.find((value) => value?.initializer)?.initializer ?? null;
}
