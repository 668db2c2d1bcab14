// One training step of the pocket UNet's adapters in ONNX Runtime: forward, backward and update in one run.
// Prints milliseconds and the peak memory of a process that does nothing else.
// Usage: node benchmarks/training-step.mjs [--batch 16] [--rank 8] [--segments 1]
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import * as ort from "onnxruntime-node";

const repetitions = 12;
const unet = fileURLToPath(new URL("../models/pocket/unet/model.onnx", import.meta.url));
const { values } = parseArgs({
  options: {
    batch: { type: "string", default: "16" },
    rank: { type: "string", default: "8" },
    segments: { type: "string", default: "1" },
    run: { type: "string" },
  },
});

// The measuring process loads none of this, so that its memory is the session's.
const onnx = values.run ? null : await import("@quad/onnx");
const quad = values.run ? null : await import("quad");

if (values.run) await measure(values.run);
else await main();

async function main() {
  const folder = mkdtempSync(join(tmpdir(), "quad-training-"));
  try {
    for (const stage of ["forward", "backward", "update"]) {
      const path = join(folder, `${stage}.onnx`);
      await onnx.saveModel(await trainingModel(stage), path, { externalData: "never" });
      const child = spawnSync(process.execPath, [process.argv[1], "--run", path], { encoding: "utf8" });
      if (child.status !== 0) throw new Error(child.stderr);
      console.log(
        `${{ forward: "forward", backward: "+ backward", update: "+ update" }[stage].padEnd(12)}${child.stdout.trim()}`,
      );
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function trainingModel(stage) {
  const [batch, rank, segments] = [values.batch, values.rank, values.segments].map(Number);
  const model = onnx.loadModel(unet);
  const layers = quad.findLayers(model).layers.filter(({ kind, name }) => kind !== "conv" && /attn|\.ff\./.test(name));
  const { slots } = quad.exposeGraph(model, "unet", layers, { kind: "fixed", rank });
  await onnx.specialize(model, {
    inputs: { sample: [batch, 9, 16, 16], timestep: [], encoder_hidden_states: [batch, 16, 96] },
  });
  const { graph } = model;
  const inputs = new Map(graph.inputs.map((input) => [input.name, input]));
  const factors = slots.flatMap(({ inputA, inputB }) => [inputs.get(inputA), inputs.get(inputB)]);
  const { vector, size } = onnx.packInputs(model, factors, "parameters");
  const build = new onnx.Builder(model);
  const [output] = graph.outputs;
  const loss = onnx.meanSquaredError(build, output, graph.addInput("target", "float32", build.dims(output)));
  graph.outputs.splice(0, 1, loss);
  if (stage !== "forward") {
    const gradient = onnx.buildGradients(model, { outputs: [{ value: loss }], wrt: [vector], segments }).get(vector);
    if (stage === "backward") graph.outputs.push(gradient);
    else graph.outputs.push(...update(build, vector, gradient, size));
  }
  await onnx.runPasses(model);
  onnx.scheduleForMemory(graph);
  return model;
}

function update(build, parameter, gradient, size) {
  const { graph } = build;
  const clipped = onnx.clipByGlobalNorm(build, [gradient], 1);
  const next = onnx.adamW(build, {
    parameter,
    gradient: clipped.gradients[0],
    mean: graph.addInput("mean", "float32", [size]),
    square: graph.addInput("square", "float32", [size]),
    learningRate: graph.addInput("learning_rate", "float32", []),
    correction1: graph.addInput("correction1", "float32", []),
    correction2: graph.addInput("correction2", "float32", []),
  });
  return [clipped.norm, next.parameter, next.mean, next.square];
}

/** Runs a model with plain inputs in this process. From a path: no copy of the file stays in JavaScript. */
async function measure(path) {
  const session = await ort.InferenceSession.create(path, {
    intraOpNumThreads: 2,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
    // Planned memory patterns hold a second copy of all activations after the first run.
    enableMemPattern: false,
  });
  const feeds = {};
  for (const { name, type, shape } of session.inputMetadata) {
    const count = shape.reduce((product, dim) => product * dim, 1);
    const scale = name === "parameters" ? 0.05 : name === "mean" || name === "square" ? 0 : 1;
    const wave = Float32Array.from({ length: count }, (_, index) =>
      shape.length < 1 ? 0.5 : scale * Math.sin(index * 12.9898),
    );
    feeds[name] =
      type === "int64"
        ? new ort.Tensor("int64", new BigInt64Array(count).fill(500n), shape)
        : new ort.Tensor("float32", wave, shape);
  }
  const times = [];
  for (let repetition = 0; repetition < repetitions; repetition++) {
    const start = performance.now();
    await session.run(feeds);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? 0) / 1024;
  console.log(
    `${times[0].toFixed(0)} ms best, ${times[repetitions >> 1].toFixed(0)} ms median, peak ${peak.toFixed(0)} MB`,
  );
}
