// Every stage of a build on a Stable Diffusion 1.5 UNet with generated weights, and running what comes out.
// Usage: node benchmarks/scale/run.mjs WORK [--adapters 10] [--rank 16] [--latents 32]
// Takes an hour and about 30 GB of disk in WORK. Finished stages are not run again. Writes WORK/scale.json, from which the
// tables of docs/scale.md and README.md are made.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { distillAdapter, loadConfig, recordTeacher, storageSizes, storageTable } from "quad-lora";
import { writeMerged } from "../folders.mjs";
import { inOwnProcess, machine, median, peakMegabytes } from "../harness.mjs";
import { fillTables, markdown, round } from "../tables.mjs";

const own = fileURLToPath(import.meta.url);
const foldersModule = fileURLToPath(new URL("../folders.mjs", import.meta.url));
const trainingModule = fileURLToPath(new URL("training.mjs", import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    adapters: { type: "string", default: "10" },
    rank: { type: "string", default: "16" },
    latents: { type: "string", default: "32" },
  },
  // A child process has arguments of its own.
  ...(process.argv[1] === own ? {} : { args: [] }),
});
const [work] = positionals;

/** Runs a command of the command line in this process: called in a process of its own. */
export async function runCommand(parameters) {
  const { main } = await import("../../packages/quad/dist/cli/main.js");
  const started = performance.now();
  await main(parameters);
  if (process.exitCode) throw new Error(`quad ${parameters.join(" ")} ended with ${process.exitCode}`);
  return { seconds: (performance.now() - started) / 1000, peak: peakMegabytes() };
}

/** The teacher's calls of one adapter, cached on disk: called in a process of its own. */
export async function runTeacher({ exposed, config, adapter, trajectory }) {
  const { loadCases } = await import("../../packages/quad/dist/tasks/cases.js");
  const started = performance.now();
  const { tasks, distill } = await loadConfig(config);
  await recordTeacher(exposed, adapter, await loadCases(exposed, tasks[adapter]), trajectory, distill);
  return { seconds: (performance.now() - started) / 1000, peak: peakMegabytes() };
}

/** A few steps of one adapter's distillation: called in a process of its own. */
export async function runDistillation({ exposed, config, profile, adapter, trajectory, out }) {
  const started = performance.now();
  const { distill: settings } = await loadConfig(config);
  let first;
  const times = [];
  await distillAdapter({
    ...{ exposed, profile, adapter, trajectory, out, settings },
    onStep: () => {
      const now = performance.now();
      // The first step warms up.
      if (first !== undefined) times.push((now - first) / 1000);
      first = now;
    },
  });
  return { seconds: (performance.now() - started) / 1000, peak: peakMegabytes(), perStep: median(times.slice(0, -1)) };
}

if (process.argv[1] === own) {
  if (!work) {
    console.error("usage: node benchmarks/scale/run.mjs WORK [--adapters 10] [--rank 16] [--latents 32]");
    process.exit(2);
  }
  await measure();
}

async function measure() {
  const paths = {
    model: join(work, "model"),
    exposed: join(work, "exposed"),
    calibration: join(work, "calibration"),
    profile: join(work, "profile.json"),
    bundle: join(work, "bundle"),
    distilled: join(work, "distilled"),
    merged: join(work, "merged"),
    config: join(work, "quad.config.json"),
    result: join(work, "scale.json"),
  };
  await mkdir(work, { recursive: true });
  const options = ["adapters", "rank", "latents"].flatMap((name) => [`--${name}`, values[name]]);
  const make = fileURLToPath(new URL("make-model.mjs", import.meta.url));
  execFileSync(process.execPath, [make, work, ...options], { stdio: "inherit" });
  const { adapters } = JSON.parse(await readFile(paths.config, "utf8"));
  const tasks = Object.keys(adapters);

  const results = existsSync(paths.result)
    ? JSON.parse(await readFile(paths.result, "utf8"))
    : { format: "quad-scale", version: 1, machine: machine(), stages: {}, runs: {} };
  const once = async (kind, name, produce) => {
    if (results[kind][name]) return;
    console.log(`\n== ${name}`);
    results[kind][name] = await produce();
    await writeFile(paths.result, `${JSON.stringify(results, null, 1)}\n`);
  };
  const stage = (name, out, parameters) =>
    once("stages", name, async () => {
      await rm(out, { recursive: true, force: true });
      return inOwnProcess(own, "runCommand", parameters);
    });

  const given = tasks.flatMap((task) => ["--adapter", `${task}=${join(work, adapters[task])}`]);
  await stage("expose", paths.exposed, ["expose", paths.model, ...given, "--out", paths.exposed]);
  const configured = ["--config", paths.config];
  await stage("calibrate", paths.calibration, ["calibrate", paths.exposed, ...configured, "--out", paths.calibration]);
  await stage("profile", paths.profile, [
    ...["profile", paths.exposed, "--calibration", paths.calibration, ...configured, "--out", paths.profile],
  ]);
  await stage("compile", paths.bundle, [
    ...["compile", paths.exposed, "--profile", paths.profile, "--out", paths.bundle, "--target", "cpu"],
  ]);
  const trajectory = join(work, "teacher.safetensors");
  const { exposed, config, profile, distilled } = paths;
  const distilling = { exposed, config, profile, trajectory, out: distilled, adapter: tasks[0] };
  await once("stages", "teacher, 2 pictures", () => inOwnProcess(own, "runTeacher", distilling));
  await once("stages", "distill, 4 steps", async () => {
    await rm(distilled, { recursive: true, force: true });
    return inOwnProcess(own, "runDistillation", distilling);
  });

  const learning = { model: paths.model, rank: Number(values.rank), latents: Number(values.latents), steps: 6 };
  await once("stages", "train a LoRA, 6 steps of batch 1", () => inOwnProcess(trainingModule, "runTraining", learning));

  const side = 8 * Number(values.latents);
  const request = { prompt: "red apple food fruit", seed: 3, steps: 2, guidance: 7.5, width: side, height: side };
  const visit = (folder, names) => () =>
    inOwnProcess(foldersModule, "visitTasks", { visits: names.map((task) => ({ folder, task })), request, repeats: 2 });
  await once("runs", "merged fp32, one task", async () => {
    const [task] = tasks;
    await writeMerged(paths.model, paths.merged, task, join(work, adapters[task]));
    const result = await visit(paths.merged, [null])();
    await rm(paths.merged, { recursive: true });
    return result;
  });
  await once("runs", "exposed fp32, unbound", visit(paths.exposed, ["base"]));
  await once("runs", "exposed fp32, one task", visit(paths.exposed, tasks.slice(0, 1)));
  await once("runs", "bundle, unbound", visit(paths.bundle, ["base"]));
  await once("runs", "bundle, one task", visit(paths.bundle, tasks.slice(0, 1)));
  await once("runs", `bundle, ${tasks.length} tasks in turn`, visit(paths.bundle, tasks));
  results.sizes = await storageSizes(paths.bundle, paths.exposed);
  results.storage = storageTable(results.sizes);
  const content = `${JSON.stringify(results, null, 1)}\n`;
  await writeFile(paths.result, content);
  await mkdir(fileURLToPath(new URL("../results", import.meta.url)), { recursive: true });
  await writeFile(fileURLToPath(new URL("../results/scale.json", import.meta.url)), content);
  const tables = scaleTables(results);
  for (const table of Object.values(tables)) console.log(`\n${table}`);
  await fillTables(fileURLToPath(new URL("../../docs/scale.md", import.meta.url)), tables);
}

function scaleTables({ stages, runs, storage, sizes }) {
  const seconds = (milliseconds) => (milliseconds === null ? "" : round(milliseconds / 1000));
  const gigabytes = (megabytes) => round(megabytes / 1000);
  const size = (bytes) => gigabytes(bytes / 1e6);
  return {
    stages: markdown([
      ["stage", "time, s", "peak memory, GB", "a training step, s"],
      ...Object.entries(stages).map(([name, { seconds: spent, peak, perStep }]) => [
        ...[name, round(spent), gigabytes(peak)],
        round(perStep),
      ]),
    ]),
    runs: markdown([
      ["run", "open, s", "UNet step, s", "change the task, ms", "peak memory, GB"],
      ...Object.entries(runs).map(([name, result]) => [
        name,
        seconds(result.open),
        seconds(result.step),
        round(result.switch),
        gigabytes(result.peak),
      ]),
    ]),
    storage: markdown([
      ["tasks", "merged fp32, GB", "merged 8-bit, GB", "bundle, GB", "merged 8-bit / bundle"],
      ...storage.map((row) => [
        row.tasks,
        size(row.mergedFullPrecision),
        size(row.mergedQuantized),
        size(row.bundle),
        round(row.mergedQuantized / row.bundle),
      ]),
    ]),
    sizes: markdown([
      ["file", "size, MB", "share of the bundle's graph"],
      ["UNet in the bundle", round(sizes.quantizedGraph / 1e6), "100 %"],
      ["an adapter of rank 16", round(sizes.adapter / 1e6), `${round((100 * sizes.adapter) / sizes.quantizedGraph)} %`],
    ]),
  };
}
