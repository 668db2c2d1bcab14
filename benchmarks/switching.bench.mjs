// What a task switch costs, and what adapter inputs cost in time per step and memory.
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadModel, saveModel } from "@quad-lora/onnx";
import { openPipeline, seededNoise } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { expose, findLayers, folderFiles, inspectModel, openModelFolder } from "quad-lora";
import { mergeAdapter } from "../packages/quad/dist/expose/merge-adapter.js";
import { inOwnProcess, median, peakMegabytes, time } from "./harness.mjs";

const own = fileURLToPath(import.meta.url);
const pocket = fileURLToPath(new URL("../models/pocket", import.meta.url));
const tasks = ["flat", "sketch", "erase"];
/** Own processes per variant: their medians even out what else the machine does. */
const rounds = 3;
const switches = 1000;
const settings = { logSeverityLevel: 3, intraOpNumThreads: 2, interOpNumThreads: 1 };

export default async function bench() {
  const folder = await mkdtemp(join(tmpdir(), "quad-bench-"));
  try {
    const exposed = join(folder, "exposed");
    await expose(pocket, { out: exposed, adapters: Object.fromEntries(tasks.map((name) => [name, name])) });
    const merged = await mergedFolder(folder, "flat");
    const variants = {
      plain: { folder: pocket, selection: null },
      unbound: { folder: exposed, selection: null },
      "bound, rank 8": { folder: exposed, selection: "sketch" },
      "bound, rank 16": { folder: exposed, selection: "flat" },
      merged: { folder: merged, selection: null },
    };
    const measured = Object.fromEntries(Object.keys(variants).map((name) => [name, []]));
    for (let round = 0; round < rounds; round++) {
      for (const [name, variant] of Object.entries(variants)) {
        measured[name].push(await inOwnProcess(own, "runVariant", variant));
      }
    }
    const figure = (name, key) => median(measured[name].map((result) => result[key]));
    const names = Object.keys(variants);
    const ratioTo = (label, name) => (name === "plain" ? {} : { baseline: `${label}, plain` });
    const switched = await inOwnProcess(own, "runSwitches", exposed);
    return {
      title: "pocket model, UNet [2, 9, 16, 16], 2 threads",
      figures: [
        {
          name: "new session of a merged UNet",
          value: await inOwnProcess(own, "runCreate", merged),
          unit: "ms",
          runs: 5,
        },
        {
          name: "switch: use(task)",
          value: switched.milliseconds,
          unit: "ms",
          runs: switches,
          baseline: "new session of a merged UNet",
          // Microseconds: timers and garbage collection weigh more than the work.
          tolerance: 1,
        },
        {
          name: "first use of an adapter: read its file",
          value: switched.firstUse,
          unit: "ms",
          runs: tasks.length,
          tolerance: 1,
        },
        ...names.map((name) => ({
          name: `step, ${name}`,
          value: figure(name, "step"),
          unit: "ms",
          runs: rounds * 15,
          ...ratioTo("step", name),
        })),
        ...names.map((name) => ({
          name: `peak memory, ${name}`,
          value: figure(name, "peak"),
          unit: "MB",
          runs: rounds,
          ...ratioTo("peak memory", name),
        })),
        { name: `sessions created by ${switches} switches`, value: switched.sessions, unit: "sessions" },
        {
          name: `tensor buffers kept by ${switches} switches`,
          value: switched.buffersMegabytes,
          unit: "MB",
          informative: true,
        },
        {
          name: `resident memory grown by ${switches} switches`,
          value: switched.residentMegabytes,
          unit: "MB",
          informative: true,
        },
        { name: "weights of the UNet", value: switched.weightsMegabytes, unit: "MB", informative: true },
      ],
      notes: [
        "plain: the graph as exported; unbound: with adapter inputs, no adapter; merged: an adapter folded into the weights.",
        `If a switch copied the weights once, ${switches} switches would copy ${((switches * switched.weightsMegabytes) / 1000).toFixed(0)} GB.`,
      ],
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** One way to run the UNet, in a process of its own: milliseconds per step, peak memory in MB. */
export async function runVariant({ folder, selection }) {
  const pipeline = await openPipeline({ ort, files: folderFiles(folder), sessionOptions: settings });
  await pipeline.use(selection);
  const inputs = stepInputs();
  const step = median(await time(() => pipeline.runComponent("unet", inputs)));
  const peak = peakMegabytes();
  await pipeline.dispose();
  return { step, peak };
}

/** Switches among all tasks of one pipeline that has run with each, and counts what that creates and keeps. */
export async function runSwitches(folder) {
  let sessions = 0;
  const counting = {
    Tensor: ort.Tensor,
    InferenceSession: {
      create: (...parameters) => {
        sessions++;
        return ort.InferenceSession.create(...parameters);
      },
    },
  };
  const pipeline = await openPipeline({ ort: counting, files: folderFiles(folder), sessionOptions: settings });
  const inputs = stepInputs();
  const firstUse = [];
  for (const name of tasks) firstUse.push((await time(() => pipeline.use(name), { warmUp: 0, runs: 1 }))[0]);
  const selections = ["base", ...tasks];
  const cycle = async (count) => {
    const times = [];
    for (let index = 0; index < count; index++) {
      times.push((await time(() => pipeline.use(selections[index % selections.length]), { warmUp: 0, runs: 1 }))[0]);
    }
    return times;
  };
  for (const selection of selections) {
    await pipeline.use(selection);
    await pipeline.runComponent("unet", inputs);
  }
  await cycle(200);
  const opened = sessions;
  const before = memoryAfterCollection();
  const times = await cycle(switches);
  const after = memoryAfterCollection();
  await pipeline.dispose();
  const { graph } = loadModel(join(pocket, "unet/model.onnx"));
  let bytes = 0;
  for (const { initializer } of graph.initializers) bytes += initializer.byteLength;
  return {
    milliseconds: median(times),
    firstUse: median(firstUse),
    sessions: sessions - opened,
    buffersMegabytes: (after.arrayBuffers - before.arrayBuffers) / 1e6,
    residentMegabytes: (after.rss - before.rss) / 1e6,
    weightsMegabytes: bytes / 1e6,
  };
}

/** What every switch costs without adapter inputs: a session of another UNet. */
export async function runCreate(folder) {
  const sessions = [];
  const create = async () =>
    sessions.push(await ort.InferenceSession.create(join(folder, "unet/model.onnx"), settings));
  const times = await time(create, { warmUp: 1, runs: 5 });
  for (const session of sessions) await session.release();
  return median(times);
}

function memoryAfterCollection() {
  for (let pass = 0; pass < 3; pass++) globalThis.gc();
  return process.memoryUsage();
}

/** One step with guidance: two rows of 16 x 16 latents. */
function stepInputs() {
  return {
    sample: { type: "float32", dims: [2, 9, 16, 16], data: seededNoise(1, 2 * 9 * 256) },
    timestep: { type: "int64", dims: [], data: BigInt64Array.of(500n) },
    encoder_hidden_states: { type: "float32", dims: [2, 16, 96], data: seededNoise(2, 2 * 16 * 96) },
  };
}

/** A copy of the pocket model with one adapter folded into the UNet's weights. */
async function mergedFolder(folder, name) {
  const target = join(folder, "merged");
  await cp(pocket, target, { recursive: true });
  const { models, adapters } = await inspectModel(await openModelFolder(pocket), { [name]: name });
  const model = models.get("unet");
  mergeAdapter(
    model,
    findLayers(model).layers,
    adapters[0].layers.filter(({ component }) => component === "unet"),
  );
  await saveModel(model, join(target, "unet/model.onnx"));
  return target;
}
