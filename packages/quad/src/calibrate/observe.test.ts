import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { cloneModel, createSession, type Graph, loadModel, type Model, runModel, Tensor, toOrt } from "@quad-lora/onnx";
import { beforeAll, describe, expect, test } from "vitest";
import { exposedPocket } from "../../../../test/helpers/exposed-pocket.ts";
import { buildModel, randomTensor, temporaryFolder } from "../../../../test/helpers/models.ts";
import { shapeOf } from "../model/denoiser-calls.ts";
import { openWithGraph } from "../model/open-with-graph.ts";
import { denoiserSlots } from "../model/slots.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import { type Observations, readObservations, writeObservations } from "../records/observations.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import { recordTask } from "./calibrate.ts";
import { observe } from "./observe.ts";
import { histogramGraph, observed, rangeGraph } from "./observing-graph.ts";

const folder = temporaryFolder();

/** Counts over `bins` equal bins from `low`, in float32 as the graph computes; outer values in the outermost bins. */
function countsOf(values: Float32Array, low: number, perUnit: number, bins: number): number[] {
  const counts = new Array<number>(bins).fill(0);
  for (const value of values) {
    const position = Math.fround(Math.fround(value - low) * perUnit);
    counts[Math.min(bins - 1, Math.max(0, Math.trunc(position)))]++;
  }
  return counts;
}

describe("observing graphs against statistics of the full values", () => {
  let model: Model;
  const names = ["x", "positive", "scalar", "none"];
  const x = randomTensor([4, 6], 3);
  beforeAll(() => {
    model = buildModel((graph: Graph) => {
      const input = graph.addInput("x", "float32", [4, 6]);
      const shift = graph.addInitializer("shift", Tensor.scalar(10));
      const positive = graph.apply("Add", [input, shift]);
      const scalar = graph.apply("ReduceMax", [input], { attributes: { keepdims: 0 } });
      const start = graph.addInitializer("start", Tensor.int64([1], [0]));
      const none = graph.apply("Slice", [input, start, start]);
      return { positive: { value: positive }, scalar: { value: scalar }, none: { value: none } };
    });
    // As in prepared graphs, where only sizes that the rank decides are unknown.
    const values = model.graph.valuesByName();
    values.get("positive")!.type = typeOf([4, 6]);
    values.get("scalar")!.type = typeOf([]);
    model.opsets.set("", 17);
    model.irVersion = 8;
  });

  test("extremes are exact; scalars and empty values count too", async () => {
    const outputs = await runModel(rangeGraph(model, names), { x });
    const values = [...x.toFloat32()];
    const shifted = values.map((value) => Math.fround(value + 10));
    const [least, greatest] = [Math.min(...values), Math.max(...values)];
    const [first, last] = [Math.min(...shifted), Math.max(...shifted)];
    expect(outputs.get(observed.extremes)!.toNumbers()).toEqual([
      least,
      greatest,
      first,
      last,
      greatest,
      greatest,
      0,
      0,
    ]);
    expect(outputs.get("positive")!.toNumbers()).toEqual(shifted);
  });

  test("histograms are those of the full values, or of every n-th element", async () => {
    const bins = 16;
    const low = Float32Array.of(-1, 8, 0, 0);
    const perUnit = Float32Array.of(bins / 2, bins / 4, bins, bins);
    const feeds = {
      x,
      [observed.low]: Tensor.float32([4], low),
      [observed.binsPerUnit]: Tensor.float32([4], perUnit),
    };
    const full = x.toFloat32();
    const positive = full.map((value) => value + 10);
    for (const step of [1, 3]) {
      const outputs = await runModel(histogramGraph(model, names, bins, 24 / step), feeds);
      const counts = outputs.get(observed.counts)!;
      expect(counts.dims).toEqual([names.length * bins]);
      const thinned = (values: Float32Array) => values.filter((_, index) => index % step === 0);
      expect(counts.toNumbers()).toEqual([
        ...countsOf(thinned(full), low[0], perUnit[0], bins),
        ...countsOf(thinned(positive), low[1], perUnit[1], bins),
        ...countsOf(Float32Array.of(Math.max(...full)), 0, bins, bins),
        ...new Array(bins).fill(0),
      ]);
    }
  });
});

test("ONNX Runtime observes every value before it makes the next", async () => {
  const count = 40;
  const valueNames = Array.from({ length: count }, (_, index) => `value${index}`);
  const chain = buildModel((graph) => {
    let value = graph.addInput("x", "float32", [4]);
    for (const name of valueNames) {
      value = graph.apply("Neg", [value]);
      value.name = name;
      value.type = typeOf([4]);
    }
    return { result: { value: graph.apply("Neg", [value]) } };
  });
  chain.opsets.set("", 17);
  chain.irVersion = 8;
  const limits = (value: number) => Tensor.float32([count], new Float32Array(count).fill(value));
  const edges = { [observed.low]: limits(0), [observed.binsPerUnit]: limits(1) };
  for (const [observer, graph, feeds] of [
    ["ReduceMax", rangeGraph(chain, valueNames), {}],
    ["ScatterElements", histogramGraph(chain, valueNames, 4, 4), edges],
  ] as const) {
    const session = await createSession(graph, {
      enableProfiling: true,
      profileFilePrefix: join(folder, observer),
      graphOptimizationLevel: "disabled",
    });
    const inputs = { x: Tensor.float32([4], new Float32Array(4)), ...feeds };
    await session.run(Object.fromEntries(Object.entries(inputs).map(([name, tensor]) => [name, toOrt(tensor)])));
    session.endProfiling();
    await session.release();
    const [file] = readdirSync(folder).filter((name) => name.startsWith(observer));
    const events: { name: string; args?: { op_name?: string } }[] = JSON.parse(
      readFileSync(join(folder, file), "utf8"),
    );
    const operators = events.filter(({ name }) => name.endsWith("_kernel_time")).map(({ args }) => args?.op_name);
    const made = operators.flatMap((operator, position) => (operator === "Neg" ? [position] : []));
    expect(made.length).toBe(count + 1);
    for (let index = 1; index <= count; index++) {
      const before = operators.slice(0, made[index]).filter((operator) => operator === observer).length;
      expect(before, `${observer} before value ${index}`).toBe(index);
    }
  }
});

function typeOf(shape: number[]) {
  return { kind: "tensor", dataType: "float32", shape } as const;
}

describe("observations of the pocket model", () => {
  let exposed: string;
  const files: string[] = [];
  let trajectories: Trajectory[];
  let observations: Observations;
  let model: Model;
  let component: string;
  const steps = 2;
  /**
   * The graph's input, a layer's output, a value inside an adapter branch, attention weights. Not conv_in: where ONNX Runtime 1.30
   * lays convolutions out in blocks of 8 channels, making the output of one that reads 9 and is added to a graph output ends the
   * process.
   */
  const watched = [
    "sample",
    "/down_blocks.0/resnets.0/conv1/Conv_output_0",
    "/down_blocks/0/resnets/0/conv1/lora/down/Conv_output_0",
    "/down_blocks.1/attentions.0/transformer_blocks.0/attn1/Softmax_output_0",
  ];
  const settings = { stepGroups: 2, bins: 128, sampled: 1 << 20 };
  beforeAll(async () => {
    exposed = await exposedPocket();
    for (const task of ["base", "flat"]) {
      const file = join(folder, `${task}.safetensors`);
      await recordTask(exposed, task, [{ prompt: "crab animal marine", seed: 1, steps }], file);
      files.push(file);
    }
    trajectories = await Promise.all(files.map(readTrajectory));
    const { slots, ...denoiser } = await denoiserSlots(exposed);
    component = denoiser.component;
    model = await prepareGraph(loadModel(join(exposed, component, "model.onnx")), slots, shapeOf(trajectories));
    observations = await observe(exposed, component, model, watched, trajectories, settings);
    await writeObservations(join(folder, "observations.safetensors"), observations);
  });

  test("are read back as they were", async () => {
    expect(await readObservations(join(folder, "observations.safetensors"))).toEqual(observations);
  });

  test("agree with the values themselves, per task and group of time steps", async () => {
    const copy = cloneModel(model);
    const values = copy.graph.valuesByName();
    for (const name of watched.slice(1)) copy.graph.outputs.push(values.get(name)!);
    const pipeline = await openWithGraph(exposed, component, copy);
    for (const [index, { task, calls }] of trajectories.entries()) {
      await pipeline.use(task);
      const seen = observations.tasks[index];
      for (const [group, call] of calls.entries()) {
        const outputs = { ...call.inputs, ...(await pipeline.runComponent(component, call.inputs)) };
        for (const name of watched) {
          const data = outputs[name].data as Float32Array;
          const position = observations.names.indexOf(name);
          const at = group * observations.names.length + position;
          expect(seen.minima[at], `${name} min`).toBe(Math.min(0, ...data));
          expect(seen.maxima[at], `${name} max`).toBe(Math.max(0, ...data));
          const counts = seen.counts.subarray(at * settings.bins, (at + 1) * settings.bins);
          const width = observations.high[position] - observations.low[position];
          const expected = countsOf(
            data,
            observations.low[position],
            Math.fround(settings.bins / width),
            settings.bins,
          );
          expect([...counts], name).toEqual(expected);
        }
      }
    }
    await pipeline.dispose();
  });

  test("take as much memory for many calls as for few, and hand no activation over", async () => {
    const few = observations.tasks.map(({ counts, minima }) => [counts.length, minima.length]);
    const values = observations.names.length;
    expect(few).toEqual([
      [settings.stepGroups * values * settings.bins, settings.stepGroups * values],
      [settings.stepGroups * values * settings.bins, settings.stepGroups * values],
    ]);
    const added = (graph: Model) => graph.graph.outputs.slice(model.graph.outputs.length).map(({ name }) => name);
    expect(added(rangeGraph(model, observations.names))).toEqual([observed.extremes]);
    expect(added(histogramGraph(model, observations.names, 64, 1024))).toEqual([observed.counts]);
  });
});
