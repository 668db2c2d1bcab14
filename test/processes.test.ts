import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { InputError } from "@quad-lora/base";
import { afterAll, expect, test } from "vitest";
import type * as Processes from "../packages/quad/src/work/processes.ts";
import { temporaryFolder } from "./helpers/models.ts";

// Child processes run the built package.
const built = join(import.meta.dirname, "../packages/quad/dist/work/processes.js");
const { ProcessPool } = (await import(pathToFileURL(built).href)) as typeof Processes;

const folder = temporaryFolder();
const module = join(folder, "tasks.mjs");
const base = pathToFileURL(join(import.meta.dirname, "../packages/base/dist/index.js")).href;
writeFileSync(
  module,
  `import { writeFileSync } from "node:fs";
import { InputError } from ${JSON.stringify(base)};
let opened = 0;
export const tasks = {
  async double(values, { onProgress, onWarning }) {
    onProgress("doubling", 1, 2, "half");
    onWarning("large numbers");
    return values.map((value) => 2 * value);
  },
  refuse() {
    throw new InputError({ what: "is not a picture", file: "a.png", fix: "Give another." });
  },
  fail() {
    throw new TypeError("a slip");
  },
  die: () => process.kill(process.pid, "SIGKILL"),
  async open(_, { share }) {
    return share("model", async () => ({ number: ++opened, dispose: async () => undefined })).then(({ number }) => [process.pid, number]);
  },
  wait(file, { signal, onProgress }) {
    onProgress("waiting", 0, 1);
    const alive = setInterval(() => undefined, 1000);
    return new Promise((_, reject) =>
      signal.addEventListener("abort", () => {
        clearInterval(alive);
        writeFileSync(file, "checkpoint");
        reject(signal.reason);
      }),
    );
  },
};
`,
);
const pool = new ProcessPool(pathToFileURL(module));
const kept = new ProcessPool(pathToFileURL(module), true);
afterAll(() => {
  pool.dispose();
  kept.dispose();
});

test("a task gets its input and gives its result, progress and warnings on the way", async () => {
  const seen: unknown[] = [];
  const result = await pool.run("double", new Float32Array([1.5, Number.POSITIVE_INFINITY]), {
    onProgress: (...progress) => seen.push(progress),
    onWarning: (text) => seen.push(text),
  });
  expect(result).toEqual(new Float32Array([3, Number.POSITIVE_INFINITY]));
  expect(seen).toEqual([["doubling", 1, 2, "half"], "large numbers"]);
});

test("errors come as they were thrown: bad input with its problem, faults with the stack of the other process", async () => {
  const refused = await pool.run("refuse", null).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(InputError);
  expect((refused as InputError).problem).toMatchObject({ file: "a.png", fix: "Give another." });
  const failed = (await pool.run("fail", null).catch((error: unknown) => error)) as Error;
  expect(failed.message).toBe("a slip");
  expect(failed.stack).toContain("tasks.mjs");
  await expect(pool.run("die", null)).rejects.toThrow(/the process for die ended: SIGKILL/);
});

test("an abort lets a task write its checkpoint, and is the error", async () => {
  const file = join(folder, "checkpoint");
  const controller = new AbortController();
  const waiting = pool.run("wait", file, {
    signal: controller.signal,
    onProgress: () => controller.abort(new Error("interrupted by SIGINT")),
  });
  await expect(waiting).rejects.toThrow("interrupted by SIGINT");
  expect(existsSync(file) && readFileSync(file, "utf8")).toBe("checkpoint");
  await expect(pool.run("wait", file, { signal: controller.signal })).rejects.toThrow("interrupted by SIGINT");
});

test("processes that are kept are used again, and share what they have open", async () => {
  const [process, number] = await kept.run<[number, number]>("open", null);
  expect(await kept.run("open", null)).toEqual([process, number]);
  const [other] = await pool.run<[number, number]>("open", null);
  expect((await pool.run<[number, number]>("open", null))[0]).not.toBe(other);
});
