// The part of fuzz.mjs that touches damaged files: runs the TypeScript sources.
import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parentPort, workerData } from "node:worker_threads";
import { createJiti } from "jiti";

const source = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const jiti = createJiti(import.meta.url, {
  fsCache: false,
  alias: {
    "@quad-lora/base": source("packages/base/src/index.ts"),
    "@quad-lora/onnx": source("packages/onnx/src/index.ts"),
    "@quad-lora/runtime": source("packages/runtime/src/index.ts"),
    "quad-lora": source("packages/quad/src/index.ts"),
  },
});
const load = (path) => jiti.import(source(path));
const [mode, build, scratch] = process.argv.slice(2);

if (mode === "build") {
  mkdirSync(build, { recursive: true });
  const { loadSmallBuild } = await load("test/helpers/small-build.ts");
  const { build: run } = await load("packages/quad/src/index.ts");
  await run(await loadSmallBuild(build));
} else if (mode === "list") {
  const { fuzzTargets } = await load("test/fuzz/targets.ts");
  console.log(JSON.stringify((await fuzzTargets(build, scratch)).map(({ name }) => name)));
} else {
  const { name, shared, duration, most } = workerData;
  mkdirSync(workerData.scratch, { recursive: true });
  const { fuzzTargets } = await load("test/fuzz/targets.ts");
  const { fuzzOnce } = await load("test/fuzz/run-target.ts");
  const target = (await fuzzTargets(workerData.build, workerData.scratch)).find((one) => one.name === name);
  const until = Date.now() + duration;
  for (let seed = workerData.seed; Date.now() < until && seed - workerData.seed < most; seed++) {
    const before = process.memoryUsage.rss();
    shared[0] = seed;
    shared[1] = Date.now();
    const outcome = await fuzzOnce(target, seed);
    shared[1] = 0;
    parentPort.postMessage({ ...outcome, growth: process.memoryUsage.rss() - before });
  }
}
