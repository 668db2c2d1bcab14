// What benchmarks share: timing, processes of their own, facts about the machine.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { cpus, totalmem } from "node:os";
import { fileURLToPath } from "node:url";

/**
 * One measured figure.
 * @typedef {object} Figure
 * @property {string} name
 * @property {number} value median over the runs; lower is better
 * @property {string} unit `ms`, `MB`, `sessions` ...
 * @property {number} [runs]
 * @property {string} [baseline] name of the figure of the same benchmark that the ratio refers to
 * @property {number} [tolerance] `--compare`: share by which it may get worse; the runner's default where left out
 * @property {boolean} [informative] shown, never compared
 */

/** @typedef {{ title: string, figures: Figure[], notes?: string[], measured?: string }} Result `measured`: when, ISO 8601 */

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Milliseconds of each of `runs` calls, after `warmUp` calls that do not count. */
export async function time(work, { warmUp = 3, runs = 15 } = {}) {
  for (let run = 0; run < warmUp; run++) await work();
  const times = [];
  for (let run = 0; run < runs; run++) {
    const start = performance.now();
    await work();
    times.push(performance.now() - start);
  }
  return times;
}

/** Calls an exported function of a module in a fresh process with `--expose-gc`. Argument and result cross as JSON. */
export async function inOwnProcess(module, exportName, argument) {
  const child = spawn(
    process.execPath,
    [
      "--expose-gc",
      fileURLToPath(new URL("child.mjs", import.meta.url)),
      module,
      exportName,
      JSON.stringify(argument ?? null),
    ],
    { stdio: ["ignore", "inherit", "inherit", "ipc"] },
  );
  return new Promise((resolve, reject) => {
    let result;
    child.on("message", (message) => {
      result = message;
    });
    child.on("error", reject);
    child.on("exit", (code) => {
      if (code === 0 && result !== undefined) resolve(result.value);
      else reject(new Error(`${module} (${exportName}) ended with exit code ${code}`));
    });
  });
}

/** Largest resident memory of this process so far, in megabytes (10^6 bytes). */
export function peakMegabytes() {
  return (process.resourceUsage().maxRSS * 1024) / 1e6;
}

export function machine() {
  const require = createRequire(import.meta.url);
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    memoryGB: Number((totalmem() / 1e9).toFixed(1)),
    platform: `${process.platform} ${process.arch}`,
    node: process.version,
    onnxruntime: require("onnxruntime-node/package.json").version,
    date: new Date().toISOString(),
  };
}
