// A LoRA's training step on the Stable Diffusion 1.5 UNet: batch 1, factors on all attention layers, full precision.
// Usage: node benchmarks/scale/training.mjs MODEL [--rank 16] [--latents 32] [--steps 6]      MODEL: folder with unet/
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadModel } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import { findLayers } from "quad-lora";
import { buildAdapterGraph } from "../../packages/quad/dist/train/adapter-graph.js";
import { parametersName } from "../../packages/quad/dist/train/denoiser-graph.js";
import { TrainingSession } from "../../packages/quad/dist/train/training-graph.js";
import { inOwnProcess, median, peakMegabytes } from "../harness.mjs";

const own = fileURLToPath(import.meta.url);
/** What the trainer may use of this machine's 24 GB. */
const memoryLimit = 20e9;

/** Builds the graph of a step and trains a few, as the trainer does: called in a process of its own. */
export async function runTraining({ model: folder, rank, latents, steps }) {
  const started = performance.now();
  const model = loadModel(join(folder, "unet/model.onnx"));
  const layers = findLayers(model).layers.filter(({ kind, name }) => kind !== "conv" && /attn\d\./.test(name));
  const sizes = { batch: 1, height: latents, width: latents, tokens: 77 };
  const optimizer = { clipNorm: 1, weightDecay: 0.01 };
  const options = { ...sizes, ...optimizer, rank, scale: 1, memoryLimit, segments: "auto" };
  const { training, timestep, segments } = await buildAdapterGraph(model, layers, options);
  const session = await TrainingSession.open(training, parametersName, 2);
  const opened = performance.now();
  const random = new SeededRandom(1);
  const noise = (dims) => {
    const count = dims.reduce((product, size) => product * size, 1);
    return { type: "float32", dims, data: Float32Array.from({ length: count }, () => random.normal()) };
  };
  const time = timestep.type === "float32" ? Float32Array.of(500) : BigInt64Array.of(500n);
  const batch = {
    sample: noise([1, 4, latents, latents]),
    timestep: { ...timestep, data: time },
    encoder_hidden_states: noise([1, 77, 768]),
    "training.target": noise([1, 4, latents, latents]),
  };
  const { size } = training;
  const parameters = Float32Array.from({ length: size }, () => 0.02 * random.normal());
  let state = { parameters, mean: new Float32Array(size), square: new Float32Array(size) };
  const times = [];
  const losses = [];
  for (let step = 1; step <= steps; step++) {
    const start = performance.now();
    const result = await session.step(state, step, 1e-4, batch);
    // The first one warms up.
    if (step > 1) times.push((performance.now() - start) / 1000);
    state = result.state;
    losses.push(result.loss);
  }
  await session.release();
  const seconds = (performance.now() - started) / 1000;
  const building = (opened - started) / 1000;
  return { seconds, building, peak: peakMegabytes(), perStep: median(times), parameters: size, segments, losses };
}

if (process.argv[1] === own) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rank: { type: "string", default: "16" },
      latents: { type: "string", default: "32" },
      steps: { type: "string", default: "6" },
    },
  });
  const numbers = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, Number(value)]));
  console.log(await inOwnProcess(own, "runTraining", { model: positionals[0], ...numbers }));
}
