// One training step of the pocket UNet: forward, backward and the optimizer's update, and the memory that it takes.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-node";
import { inOwnProcess, median, peakMegabytes, time } from "./harness.mjs";

const own = fileURLToPath(import.meta.url);
const unet = fileURLToPath(new URL("../models/pocket/unet/model.onnx", import.meta.url));
const [batch, rank] = [16, 8];
/** Own processes per graph: their medians even out what else the machine does. */
const rounds = 3;
const runs = 12;

export default async function bench() {
  const folder = await mkdtemp(join(tmpdir(), "quad-bench-"));
  try {
    const stages = await writeStages(folder);
    const measured = Object.fromEntries(Object.keys(stages).map((name) => [name, []]));
    for (let round = 0; round < rounds; round++) {
      for (const [name, path] of Object.entries(stages)) {
        measured[name].push(await inOwnProcess(own, "runStage", path));
      }
    }
    const figure = (name, key) => median(measured[name].map((result) => result[key]));
    const step = (name) => figure(name, "step");
    const counted = { unit: "ms", runs: rounds * runs };
    return {
      title: `pocket UNet, batch ${batch}, rank ${rank} on attention and feed-forward, fp32, 2 threads`,
      figures: [
        { name: "training step", value: step("update"), ...counted, baseline: "forward" },
        { name: "forward", value: step("forward"), ...counted },
        { name: "backward", value: step("backward") - step("forward"), ...counted, baseline: "forward" },
        // A small difference of two large figures.
        { name: "optimizer", value: step("update") - step("backward"), ...counted, informative: true },
        { name: "training step with recomputation", value: step("recomputed"), ...counted, baseline: "training step" },
        { name: "training step of all weights", value: step("weights"), ...counted, baseline: "training step" },
        ...["update", "recomputed", "weights"].map((name) => ({
          name: `peak memory, ${{ update: "step", recomputed: "step with recomputation", weights: "step of all weights" }[name]}`,
          value: figure(name, "peak"),
          unit: "MB",
          runs: rounds,
          ...(name === "update" ? {} : { baseline: "peak memory, step" }),
        })),
        { name: "peak memory, forward", value: figure("forward", "peak"), unit: "MB", runs: rounds, informative: true },
      ],
      notes: [
        "backward, optimizer: what a graph takes longer than the one without; all weights: no adapter, the UNet's own.",
        "PyTorch 1.13 with diffusers takes 350 ms and 442 MB for the step on a machine of two cores; the target is 180 ms and 350 MB.",
      ],
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The trainer's graphs as files. Loads the toolkit, which the measuring processes do not. */
async function writeStages(folder) {
  const onnx = await import("@quad-lora/onnx");
  const { findLayers } = await import("quad-lora");
  const { buildAdapterGraph } = await import("../packages/quad/dist/train/adapter-graph.js");
  const { buildWeightsGraph, findWeights } = await import("../packages/quad/dist/train/weights-graph.js");
  const { parametersName } = await import("../packages/quad/dist/train/denoiser-graph.js");
  const sizes = { batch, height: 16, width: 16, tokens: 16 };
  const common = { ...sizes, rank, scale: 1, clipNorm: 1, weightDecay: 0.01, memoryLimit: Number.POSITIVE_INFINITY };
  const adapterGraph = (segments) => {
    const model = onnx.loadModel(unet);
    const layers = findLayers(model).layers.filter(({ kind, name }) => kind !== "conv" && /attn\d\.|\.ff\./.test(name));
    return buildAdapterGraph(model, layers, { ...common, segments });
  };
  const { forward, training } = await adapterGraph(1);
  const weightsModel = onnx.loadModel(unet);
  const models = {
    forward: await finished(onnx, onnx.cloneModel(forward)),
    backward: await finished(onnx, withGradient(onnx, onnx.cloneModel(forward), parametersName)),
    update: training.model,
    recomputed: (await adapterGraph(4)).training.model,
    weights: (await buildWeightsGraph(weightsModel, findWeights(weightsModel), { ...common, segments: 1 })).training
      .model,
  };
  const paths = {};
  for (const [name, model] of Object.entries(models)) {
    paths[name] = join(folder, `${name}.onnx`);
    await onnx.saveModel(model, paths[name], { externalData: "never" });
  }
  return paths;
}

function withGradient(onnx, model, parametersName) {
  const { graph } = model;
  const vector = graph.inputs.find(({ name }) => name === parametersName);
  const gradients = onnx.buildGradients(model, { outputs: [{ value: graph.outputs[0] }], wrt: [vector] });
  graph.outputs.push(gradients.get(vector));
  return model;
}

/** As the trainer leaves its graphs. */
async function finished(onnx, model) {
  await onnx.runPasses(model);
  onnx.scheduleForMemory(model.graph);
  return model;
}

/** Runs a graph on made-up inputs: milliseconds per run, peak memory in MB. From a path: no copy of the file stays. */
export async function runStage(path) {
  const session = await ort.InferenceSession.create(path, {
    intraOpNumThreads: 2,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
    // As the trainer does: planned memory patterns hold a second copy of all activations after the first run.
    enableMemPattern: false,
  });
  const feeds = Object.fromEntries(session.inputMetadata.map((port) => [port.name, madeUp(port)]));
  const step = median(await time(() => session.run(feeds), { warmUp: 2, runs }));
  const peak = peakMegabytes();
  await session.release();
  return { step, peak };
}

function madeUp({ name, type, shape }) {
  const count = shape.reduce((product, dim) => product * dim, 1);
  if (type === "int64") return new ort.Tensor("int64", new BigInt64Array(count).fill(500n), shape);
  const scale = name.endsWith("parameters") ? 0.05 : /mean|square/.test(name) ? 0 : 1;
  const value = (index) => (shape.length === 0 ? 0.5 : scale * Math.sin(index * 12.9898));
  return new ort.Tensor(
    "float32",
    Float32Array.from({ length: count }, (_, index) => value(index)),
    shape,
  );
}
