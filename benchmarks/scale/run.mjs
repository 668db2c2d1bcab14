// Every stage of a build on a Stable Diffusion 1.5 UNet with generated weights, and running what comes out.
// Usage: node benchmarks/scale/run.mjs WORK [--adapters 10] [--rank 16] [--latents 32]
// Takes tens of minutes and about 30 GB of disk in WORK. Finished stages are not run again. Writes WORK/scale.json and
// prints docs/scale.md's tables.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { storageSizes, storageTable } from "quad";
import { formatTable } from "../../packages/quad/dist/cli/terminal.js";
import { writeMerged } from "../folders.mjs";
import { inOwnProcess, machine } from "../harness.mjs";

const own = fileURLToPath(import.meta.url);
const foldersModule = fileURLToPath(new URL("../folders.mjs", import.meta.url));
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
  const { peakMegabytes } = await import("../harness.mjs");
  const started = performance.now();
  await main(parameters);
  if (process.exitCode) throw new Error(`quad ${parameters.join(" ")} ended with ${process.exitCode}`);
  return { seconds: (performance.now() - started) / 1000, peak: peakMegabytes() };
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
  results.storage = storageTable(await storageSizes(paths.bundle, paths.exposed));
  results.sizes = await storageSizes(paths.bundle, paths.exposed);
  await writeFile(paths.result, `${JSON.stringify(results, null, 1)}\n`);
  print(results);
}

function print({ stages, runs, storage, sizes }) {
  const round = (value) => (value === null ? "" : value >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
  const seconds = (milliseconds) => (milliseconds === null ? "" : round(milliseconds / 1000));
  const gigabytes = (megabytes) => round(megabytes / 1000);
  console.log(
    `\n${formatTable([
      ["stage", "time s", "peak memory GB"],
      ...Object.entries(stages).map(([name, result]) => [name, round(result.seconds), gigabytes(result.peak)]),
    ])}`,
  );
  console.log(
    `\n${formatTable([
      ["run", "open s", "step s", "switch ms", "peak memory GB"],
      ...Object.entries(runs).map(([name, result]) => [
        name,
        seconds(result.open),
        seconds(result.step),
        round(result.switch),
        gigabytes(result.peak),
      ]),
    ])}`,
  );
  const size = (bytes) => gigabytes(bytes / 1e6);
  console.log(
    `\n${formatTable([
      ["tasks", "merged fp32 GB", "merged quantized GB", "bundle GB"],
      ...storage.map((row) => [row.tasks, size(row.mergedFullPrecision), size(row.mergedQuantized), size(row.bundle)]),
    ])}`,
  );
  console.log(
    `\nan adapter: ${round(sizes.adapter / 1e6)} MB, ${round((100 * sizes.adapter) / sizes.quantizedGraph)} % of the graph`,
  );
}
