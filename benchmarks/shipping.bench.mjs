// What it costs to ship several tasks: a merged model per task, in full precision or quantized; one exposed graph; a bundle.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, expose, loadConfig, storageSizes, storageTable } from "quad-lora";
import { writeMerged, writeMergedQuantized } from "./folders.mjs";
import { inOwnProcess, median } from "./harness.mjs";

const folders = fileURLToPath(new URL("folders.mjs", import.meta.url));
const pocket = fileURLToPath(new URL("../models/pocket", import.meta.url));
/** The paper's adapters weigh 8.5 % of their base (120 MB of 1.4 GB), and two thirds of that with 8-bit values. */
const paperShares = { 16: 0.085, 8: 0.085 / 1.5 };
const rounds = 3;
const request = { prompt: "crab animal marine", seed: 7, steps: 8, guidance: 3, width: 64, height: 64 };

export default async function bench() {
  const folder = await mkdtemp(join(tmpdir(), "quad-bench-"));
  try {
    const config = await loadConfig(join(pocket, "quad.config.json"));
    const bundle = join(folder, "bundle");
    // Its own work folder, kept: only the first run calibrates.
    const work = fileURLToPath(new URL("results/work", import.meta.url));
    // Distillation changes neither sizes nor times.
    await build({ ...config, distill: { ...config.distill, adapters: "none" }, out: bundle, work });
    const exposed = join(folder, "exposed");
    await expose(pocket, { out: exposed, adapters: config.adapters });
    const tasks = Object.keys(config.adapters);
    const merged = [];
    const quantized = [];
    for (const task of tasks) {
      const adapter = config.adapters[task];
      merged.push({ folder: await writeMerged(pocket, join(folder, `merged-${task}`), task, adapter), task: null });
      const out = join(folder, `quantized-${task}`);
      const profile = join(bundle, "profile.json");
      quantized.push({ folder: await writeMergedQuantized(pocket, out, task, adapter, profile), task: null });
    }
    const ways = {
      "merged fp32": merged,
      "merged quantized": quantized,
      "exposed fp32": tasks.map((task) => ({ folder: exposed, task })),
      bundle: tasks.map((task) => ({ folder: bundle, task })),
    };
    const one = {};
    const all = {};
    for (let round = 0; round < rounds; round++) {
      for (const [way, visits] of Object.entries(ways)) {
        const visit = (which, repeats) =>
          inOwnProcess(folders, "visitTasks", { visits: which, request, repeats, withPicture: true });
        (one[way] ??= []).push(await visit([visits[0]], 3));
        (all[way] ??= []).push(await visit(visits, 1));
      }
    }
    const middle = (results, key) => median(results.map((result) => result[key]));
    const figures = [];
    const perWay = (label, unit, value, baseline = "merged fp32") => {
      for (const way of Object.keys(ways)) {
        const measured = value(way);
        if (measured === null) continue;
        const ratio = way === baseline ? {} : { baseline: `${label}, ${baseline}` };
        figures.push({ name: `${label}, ${way}`, value: measured, unit, ...ratio });
      }
    };
    perWay("step", "ms", (way) => middle(one[way], "step"));
    perWay("picture of 8 steps", "ms", (way) => middle(one[way], "picture"));
    perWay("open", "ms", (way) => middle(one[way], "open"));
    perWay("change the task", "ms", (way) => middle(all[way], all[way][0].switch === null ? "open" : "switch"));
    perWay("peak memory, one task", "MB", (way) => middle(one[way], "peak"));
    perWay(`peak memory, ${tasks.length} tasks in turn`, "MB", (way) => middle(all[way], "peak"));
    figures.push(...storageFigures(await storageSizes(bundle, exposed)));
    return {
      title: `pocket model, ${tasks.length} adapters, every way to ship them`,
      figures: figures.map((figure) => ({
        runs: figure.unit === "MB" && figure.name.startsWith("storage") ? 1 : rounds,
        ...figure,
      })),
      notes: [
        "merged: one model per task, opened when the task changes; exposed, bundle: one graph, adapters as inputs.",
        "change the task: closing one model and opening the next where adapters are merged, else use(task).",
        "storage at the paper's size: adapters weigh 8.5 % of the graph, as the paper's do, or 5.7 % with 8-bit values.",
      ],
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function storageFigures(sizes) {
  const megabytes = (bytes) => bytes / 1e6;
  const figures = [
    { name: "storage, shared graph of the bundle", value: megabytes(sizes.quantizedGraph), unit: "MB" },
    {
      name: "storage, one adapter",
      value: megabytes(sizes.adapter),
      unit: "MB",
      baseline: "storage, shared graph of the bundle",
    },
  ];
  const variants = { "": sizes };
  for (const [bits, share] of Object.entries(paperShares)) {
    variants[` at the paper's size, ${bits} bits`] = { ...sizes, adapter: share * sizes.quantizedGraph };
  }
  for (const [suffix, given] of Object.entries(variants)) {
    for (const { tasks, mergedFullPrecision, mergedQuantized, bundle } of storageTable(given)) {
      const label = `storage, ${tasks} task${tasks === 1 ? "" : "s"}${suffix}`;
      const quantized = `${label}, merged quantized`;
      figures.push(
        { name: `${label}, merged fp32`, value: megabytes(mergedFullPrecision), unit: "MB", baseline: quantized },
        { name: quantized, value: megabytes(mergedQuantized), unit: "MB" },
        { name: `${label}, bundle`, value: megabytes(bundle), unit: "MB", baseline: quantized },
      );
    }
  }
  return figures;
}
