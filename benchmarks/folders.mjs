// Model folders that benchmarks compare: one adapter merged into the weights, in full precision or quantized.
import { cp, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { saveModel } from "@quad-lora/onnx";
import { findLayers, inspectModel, loadComponent, openFolder, openModelFolder } from "quad-lora";
import { buildQuantizedGraph } from "../packages/quad/dist/compile/quantized-graph.js";
import { mergeAdapter } from "../packages/quad/dist/expose/merge-adapter.js";
import { prepareGraph } from "../packages/quad/dist/quantizable/prepare-graph.js";
import { pointEncoding, readProfile } from "../packages/quad/dist/records/profile.js";
import { targetNamed } from "../packages/quad/dist/targets/index.js";
import { median, peakMegabytes, time } from "./harness.mjs";

/** Copies a model folder with an adapter folded into the UNet's weights. */
export async function writeMerged(model, out, name, adapter) {
  await copyWithoutUnet(model, out);
  await saveModel(await mergedUnet(model, name, adapter), join(out, "unet/model.onnx"));
  return out;
}

/** The same, quantized like a bundle: one such graph per adapter is what ships where adapters are merged. */
export async function writeMergedQuantized(model, out, name, adapter, profilePath) {
  const profile = await readProfile(profilePath);
  const slots = { strengthInput: "", slots: [] };
  const prepared = await prepareGraph(await mergedUnet(model, name, adapter), slots, profile.shape);
  const quantized = await buildQuantizedGraph(prepared, slots, {
    points: new Map(Object.entries(profile.points).map(([point, encoding]) => [point, pointEncoding(encoding)])),
    slots: new Map(),
    adapterBits: profile.policy.adapterBits,
    weightBits: profile.policy.weightBits,
    weightMethod: "min-max",
    narrowLayers: new Set(profile.narrowLayers),
    target: targetNamed("cpu"),
    rank: null,
  });
  await copyWithoutUnet(model, out);
  await saveModel(quantized, join(out, "unet/model.onnx"));
  return out;
}

async function mergedUnet(path, name, adapter) {
  const folder = await openModelFolder(path);
  if (name === null) return loadComponent(folder, "unet");
  const { models, adapters } = await inspectModel(folder, { [name]: adapter });
  const model = models.get("unet");
  const layers = adapters[0].layers.filter(({ component }) => component === "unet");
  mergeAdapter(model, findLayers(model).layers, layers);
  return model;
}

async function copyWithoutUnet(model, out) {
  const { entries } = await openModelFolder(model);
  await mkdir(join(out, "unet"), { recursive: true });
  for (const entry of entries) {
    if (entry !== "unet" && entry !== "tasks.json") await cp(join(model, entry), join(out, entry), { recursive: true });
  }
  await cp(join(model, "unet/config.json"), join(out, "unet/config.json"));
}

/**
 * Opens folders in turn, each with its tasks, and draws one picture a task: what an app does whose user tries everything.
 * Only one folder is open at a time. Call it in a process of its own.
 * @param visits [{ folder, task }]: what to open, and what to use; consecutive visits of one folder share its pipeline
 * @param request what to draw
 * @param withPicture give a grey picture and a mask along: the same work for tasks that need them and tasks that do not
 */
export async function visitTasks({ visits, request: prompted, repeats = 1, withPicture = false }) {
  const { width, height } = prompted;
  const grey = (channels) => ({ width, height, data: new Uint8Array(channels * width * height).fill(127) });
  const request = withPicture ? { ...prompted, image: grey(3), mask: grey(1) } : prompted;
  let pipeline;
  let opened;
  const opens = [];
  const switches = [];
  const pictures = [];
  const steps = [];
  for (const { folder, task } of visits) {
    const isNew = folder !== opened;
    const [milliseconds] = await time(
      async () => {
        if (isNew) {
          await pipeline?.dispose();
          pipeline = await openFolder(folder);
          opened = folder;
        }
        await pipeline.use(task);
      },
      { warmUp: 0, runs: 1 },
    );
    (isNew ? opens : switches).push(milliseconds);
    for (let repeat = 0; repeat < repeats + 1; repeat++) {
      const { milliseconds: spent, steps: count } = await pipeline.generate(request);
      if (repeat === 0) continue; // warm-up
      steps.push(spent.denoise / count);
      pictures.push(spent.encode + spent.denoise + spent.decode);
    }
  }
  // A second round over the tasks of an open folder: adapters are in memory.
  const again = [];
  for (const { folder, task } of visits) {
    if (folder === opened) again.push((await time(() => pipeline.use(task), { warmUp: 0, runs: 1 }))[0]);
  }
  const peak = peakMegabytes();
  await pipeline.dispose();
  const middle = (values) => (values.length > 0 ? median(values) : null);
  return {
    open: middle(opens),
    firstUse: middle(switches),
    switch: again.length > 1 ? middle(again) : null,
    step: middle(steps),
    picture: middle(pictures),
    peak,
  };
}
