// npm run fuzz -- --minutes 10 [--target NAME] [--seed N]: damages files of every kind that Quad reads and looks for readers
// that raise anything but an InputError, take over two seconds, or over 400 MB. What is found lies in --out, by target and seed.
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Worker } from "node:worker_threads";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "5" },
    count: { type: "string" },
    target: { type: "string" },
    seed: { type: "string", default: String(Date.now() % 1e9) },
    out: { type: "string", default: join(root, "fuzz-findings") },
  },
});
const milliseconds = Number(values.minutes) * 60_000;
const most = values.count ? Number(values.count) : Number.POSITIVE_INFINITY;
const slowest = 2000;
const largestGrowth = 400e6;
const firstSeed = Number(values.seed);

const scratch = mkdtempSync(join(tmpdir(), "quad-fuzz-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
process.on("SIGINT", () => process.exit(130));

const build = join(scratch, "build");
const made = spawnSync(process.execPath, [join(root, "scripts/fuzz-worker.mjs"), "build", build], { stdio: "inherit" });
if (made.status !== 0) process.exit(1);

let findings = 0;
function note(target, seed, what) {
  findings++;
  mkdirSync(values.out, { recursive: true });
  writeFileSync(join(values.out, `${target.replaceAll("/", "-")}-${seed}.txt`), `${what}\n`);
  console.log(`${target}, seed ${seed}: ${what.split("\n").slice(0, 3).join(" | ")}`);
}

/** Runs one target in a thread of its own: a reader that hangs is ended from outside, and the next seed goes on. */
function fuzzTarget(name, duration) {
  return new Promise((resolve) => {
    const totals = { count: 0, read: 0, refused: 0, fault: 0, slowest: 0, growth: 0 };
    const start = (seed) => {
      const shared = new Float64Array(new SharedArrayBuffer(16)); // seed under way, when it was begun
      const worker = new Worker(new URL("./fuzz-worker.mjs", import.meta.url), {
        argv: ["run"],
        workerData: { name, build, scratch: join(scratch, "files"), seed, duration, most: most - totals.count, shared },
      });
      let finished = false;
      const watch = setInterval(() => {
        const [current, begun] = shared;
        if (begun === 0 || Date.now() - begun < 5 * slowest) return;
        clearInterval(watch);
        finished = true;
        note(name, current, `still busy after ${(5 * slowest) / 1000} s`);
        totals.fault++;
        worker.terminate().then(() => start(current + 1));
      }, 250);
      worker.on("message", (outcome) => {
        if (outcome.kind === "done") {
          totals.growth = Math.max(totals.growth, outcome.growth);
          return;
        }
        totals.count++;
        totals[outcome.kind]++;
        totals.slowest = Math.max(totals.slowest, outcome.milliseconds);
        if (outcome.kind === "fault") note(name, outcome.seed, outcome.fault);
        else if (outcome.milliseconds > slowest)
          note(name, outcome.seed, `took ${Math.round(outcome.milliseconds)} ms`);
        else if (outcome.growth > largestGrowth)
          note(name, outcome.seed, `took ${Math.round(outcome.growth / 1e6)} MB`);
      });
      worker.on("error", (error) => note(name, shared[0], `the thread ended: ${error.stack ?? error}`));
      worker.on("exit", () => {
        clearInterval(watch);
        if (!finished) resolve(totals);
      });
    };
    start(firstSeed);
  });
}

const { stdout } = spawnSync(process.execPath, [join(root, "scripts/fuzz-worker.mjs"), "list", build, scratch]);
const names = JSON.parse(String(stdout)).filter((name) => !values.target || name === values.target);
console.log(`seed ${firstSeed}, ${names.length} targets, ${values.minutes} minutes`);
for (const name of names) {
  const { count, read, refused, fault, slowest: longest } = await fuzzTarget(name, milliseconds / names.length);
  if (count === 0) note(name, firstSeed, "no file was read: give more --minutes");
  console.log(
    `${name}: ${count} files, ${read} read, ${refused} refused, ${fault} faults, slowest ${Math.round(longest)} ms`,
  );
}
console.log(findings === 0 ? "no findings" : `${findings} findings in ${values.out}`);
process.exit(findings === 0 ? 0 : 1);
