// A denoising step in 8 bits against float32: time, memory, and what a bound adapter costs.
// The Stable Diffusion 1.5 UNet takes 12 GB in the folder for temporary files, 3.4 GB less with QUAD_SD15: a
// folder with its generated weights. QUAD_BENCH_LATENTS: height and width of its latents, 64 if not given; 0 leaves it out.
import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cloneModel, loadModel, saveModel, specialize } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { exposeGraph, findLayers, folderFiles } from "quad-lora";
import { buildQuantizedGraph } from "../packages/quad/dist/compile/quantized-graph.js";
import { prepareGraph } from "../packages/quad/dist/quantizable/prepare-graph.js";
import { findQuantizable } from "../packages/quad/dist/quantizable/quantizable.js";
import { encodingFromRange } from "../packages/quad/dist/quantization/index.js";
import { targetNamed } from "../packages/quad/dist/targets/index.js";
import { Component } from "../packages/runtime/dist/ort.js";
import { inOwnProcess, median, peakMegabytes } from "./harness.mjs";

const own = fileURLToPath(import.meta.url);
const pocket = fileURLToPath(new URL("../models/pocket/unet/model.onnx", import.meta.url));
const generate = fileURLToPath(new URL("../test/reference/sd15/generate.mjs", import.meta.url));
const boundRank = 16;
const variants = ["float32, merged", "float32", "W8A16", "W8A8"];
const latents = Number(process.env.QUAD_BENCH_LATENTS ?? 64);

export default async function bench() {
  const folder = await mkdtemp(join(tmpdir(), "quad-bench-"));
  try {
    const figures = await measureModel(folder, "pocket", {
      model: pocket,
      shape: { batch: 2, height: 16, width: 16, tokens: 16 },
      rounds: 3,
      runs: 15,
    });
    if (latents > 0) {
      const weights = process.env.QUAD_SD15 ?? join(folder, "unet");
      if (!process.env.QUAD_SD15) execFileSync(process.execPath, [generate, weights]);
      const sd15 = await measureModel(folder, "SD 1.5", {
        model: join(weights, "model.onnx"),
        shape: { batch: 1, height: latents, width: latents, tokens: 77 },
        rounds: 2,
        runs: 4,
      });
      figures.push(...sd15);
    }
    return {
      title: "a step in integers, 2 threads",
      figures,
      notes: [
        `pocket: UNet [2, 9, 16, 16]; SD 1.5: UNet [1, 4, ${latents}, ${latents}] with generated weights.`,
        "merged: no adapter inputs. W8A16: 16-bit inputs to every layer. W8A8: 8-bit inputs to every layer with weights.",
        `bound: an adapter of rank ${boundRank} on every attention and feed-forward layer; unbound otherwise.`,
      ],
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Figures of one model in all variants, each in processes of its own. */
async function measureModel(folder, label, { model, shape, rounds, runs }) {
  const sizes = await inOwnProcess(own, "writeVariants", { model, shape, out: join(folder, label) });
  const measured = Object.fromEntries(variants.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const name of variants) {
      measured[name].push(await inOwnProcess(own, "runVariant", { folder: join(folder, label), name, runs }));
    }
  }
  const figures = [];
  const add = (name, key, unit, baseline) => {
    const values = measured[name].map((result) => result[key]).filter((value) => value !== undefined);
    const title = (of, kind) => `${label} ${kind}, ${of}`;
    const kind = { unbound: "step", bound: "step, bound", peak: "peak memory", create: "session" }[key];
    const base = baseline && { baseline: title(baseline[0], baseline[1]) };
    figures.push({
      name: title(name, kind),
      value: median(values),
      unit,
      runs: rounds * (unit === "ms" ? runs : 1),
      ...base,
    });
  };
  for (const name of variants) add(name, "unbound", "ms", name === "float32" ? undefined : ["float32", "step"]);
  for (const name of variants.slice(1)) add(name, "bound", "ms", [name, "step"]);
  for (const name of variants) add(name, "peak", "MB", name === "float32" ? undefined : ["float32", "peak memory"]);
  for (const name of variants) {
    const base = name === "float32" ? {} : { baseline: `${label} file, float32` };
    figures.push({ name: `${label} file, ${name}`, value: sizes[name], unit: "MB", ...base });
  }
  return figures;
}

/** Writes a UNet in every variant: OUT/VARIANT/model.onnx. Returns megabytes by variant. */
export async function writeVariants({ model: path, shape, out }) {
  const plain = loadModel(path);
  const exposed = cloneModel(plain);
  await specialize(plain, { inputs: plainInputs(plain, shape) });
  const layers = findLayers(exposed).layers.filter(({ name }) => name.includes("attentions."));
  const slots = exposeGraph(exposed, "unet", layers, { kind: "dynamic" });
  const prepared = await prepareGraph(exposed, slots, shape);
  const { layers: quantizable } = findQuantizable(prepared, slots);
  const sizes = {};
  for (const name of variants) {
    const file = join(out, name, "model.onnx");
    await mkdir(join(out, name), { recursive: true });
    const isFloat = name.startsWith("float32");
    const graph = isFloat
      ? name === "float32"
        ? prepared
        : plain
      : await quantized(prepared, slots, quantizable, name === "W8A8");
    await saveModel(graph, file, { externalData: "always" });
    sizes[name] = ((await stat(file)).size + (await stat(`${file}_data`)).size) / 1e6;
  }
  return sizes;
}

/** The time of integer kernels does not depend on the codes: ranges that hold normally distributed values will do. */
function quantized(prepared, slots, layers, isNarrow) {
  const narrow = layers.filter(({ kind }) => isNarrow && kind === "weighted").map(({ name }) => name);
  const narrowLayers = new Set(narrow);
  const points = new Map();
  for (const { name, activations } of layers) {
    const bits = narrowLayers.has(name) ? 8 : 16;
    const encoding = encodingFromRange(-6, 6, { bits, signed: false, symmetric: false });
    activations.forEach((_, position) => {
      points.set(`${name}#${position}`, encoding);
    });
  }
  return buildQuantizedGraph(prepared, slots, {
    points,
    slots: new Map(slots.slots.map(({ name }) => [name, { a: 0.001, b: 0.001 }])),
    adapterBits: 8,
    weightBits: 8,
    weightMethod: "min-max",
    narrowLayers,
    target: targetNamed("cpu"),
    rank: null,
  });
}

function plainInputs(model, { batch, height, width, tokens }) {
  const wanted = { 4: [batch, -1, height, width], 3: [batch, tokens, -1], 1: [1], 0: [] };
  return Object.fromEntries(
    model.graph.inputs.map(({ name, type }) => [
      name,
      type.shape.map((dim, axis) => (typeof dim === "number" ? dim : wanted[type.shape.length][axis])),
    ]),
  );
}

/** One graph in a process of its own: milliseconds per step without and with an adapter, peak memory in MB. */
export async function runVariant({ folder, name, runs }) {
  // As pipelines open it: on processors that need it, with the setting that keeps integer products from overflowing.
  const graph = await Component.open(ort, folderFiles(folder), name, {
    logSeverityLevel: 3,
    intraOpNumThreads: 2,
    interOpNumThreads: 1,
  });
  const hasAdapters = [...graph.inputs.keys()].some((input) => input.endsWith(".lora_A"));
  const times = hasAdapters ? { unbound: [], bound: [] } : { unbound: [] };
  const feeds = { unbound: stepInputs(graph, 0), bound: stepInputs(graph, boundRank) };
  // In turn, so that both meet the same state of the machine; the first run of each warms up.
  for (let run = 0; run <= runs; run++) {
    for (const kind of Object.keys(times)) {
      const start = performance.now();
      await graph.run(feeds[kind]);
      if (run > 0) times[kind].push(performance.now() - start);
    }
  }
  const peak = peakMegabytes();
  await graph.release();
  return { unbound: median(times.unbound), ...(hasAdapters ? { bound: median(times.bound) } : {}), peak };
}

function stepInputs({ inputs }, rank) {
  const random = new SeededRandom(5);
  return Object.fromEntries(
    [...inputs.values()].map(({ name, type, shape }) => {
      const dims = shape.map((size) => (typeof size === "string" ? rank : size));
      const count = dims.reduce((product, size) => product * size, 1);
      const fill = (array, value) => array.map(value);
      const data =
        type === "int64"
          ? new BigInt64Array(count).fill(500n)
          : type === "int8"
            ? fill(new Int8Array(count), () => 20 * random.normal())
            : fill(new Float32Array(count), () =>
                name.includes("timestep") ? 500 : (/lora_[AB]$/.test(name) ? 0.02 : 1) * random.normal(),
              );
      return [name, new ort.Tensor(type, data, dims)];
    }),
  );
}
