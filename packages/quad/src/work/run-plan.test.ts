import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import type { Executor } from "./executors/executor.ts";
import { inProcess } from "./executors/in-process.ts";
import { HashCache } from "./hash-tree.ts";
import { fileReference, Plan } from "./plan.ts";
import { planState } from "./plan-state.ts";
import type { Progress } from "./progress.ts";
import { Results } from "./results.ts";
import { type RunOptions, runPlan } from "./run-plan.ts";
import type { Stage } from "./stage.ts";

const root = temporaryFolder();
let count = 0;
const workFolder = () => join(root, `work ${count++}`);

/** Joins texts, from files and given ones; counts its runs. */
function joinStage(name = "join") {
  const log: string[] = [];
  const stage: Stage<{ files: string[]; text?: string }> = {
    name,
    version: 1,
    async run({ files, text = "" }, folder) {
      const parts = await Promise.all(files.map((path) => readFile(path, "utf8")));
      log.push(text);
      await writeFile(join(folder, "text"), parts.join("") + text);
    },
  };
  return { stage, log };
}

async function run(plan: Plan, work: string, options: Partial<RunOptions> = {}) {
  const results = new Results(work);
  try {
    return await runPlan(plan, { results, executor: inProcess(), ...options });
  } finally {
    await results.release();
  }
}

const textOf = (folder: string) => readFile(join(folder, "text"), "utf8");

describe("a plan", () => {
  test("runs every step once, after those that it takes from, and again only what has changed", async () => {
    const work = workFolder();
    const { stage, log } = joinStage();
    const planOf = (middle: string) => {
      const plan = new Plan();
      const a = plan.add("a", stage, { files: [], text: "a" });
      const b = plan.add("b", stage, { files: [a("text")], text: middle });
      plan.add("c", stage, { files: [a("text"), b("text")], text: "c" });
      return plan;
    };
    const seen: string[] = [];
    const first = await run(planOf("b"), work, { onStage: (label, { reused }) => seen.push(`${label} ${reused}`) });
    expect(seen).toEqual(["a false", "b false", "c false"]);
    expect(await textOf(first.c.folder)).toBe("aabc");
    const again = await run(planOf("b"), work);
    expect(Object.values(again).map(({ reused }) => reused)).toEqual([true, true, true]);
    const changed = await run(planOf("B"), work);
    expect(Object.values(changed).map(({ reused }) => reused)).toEqual([true, false, false]);
    expect(await textOf(changed.c.folder)).toBe("aaBc");
    expect(log).toEqual(["a", "b", "c", "B", "c"]);
  });

  test("knows files by their contents, not by their paths", async () => {
    const work = workFolder();
    await mkdir(work);
    const hashes = await HashCache.open(join(work, "hashes.json"));
    const keyFor = async (path: string, text: string) => {
      await writeFile(path, text);
      const plan = new Plan();
      plan.add("a", joinStage().stage, { files: [await fileReference(path, hashes)] });
      return plan.keyOf("a");
    };
    const key = await keyFor(join(work, "one"), "text");
    expect(await keyFor(join(work, "two"), "text")).toBe(key);
    expect(await keyFor(join(work, "three"), "other")).not.toBe(key);
  });

  test("is planned further from a result", async () => {
    const { stage } = joinStage();
    const plan = new Plan();
    const a = plan.add("a", stage, { files: [], text: "xy" });
    plan.when("a", "one step for each letter", async (folder) => {
      for (const letter of await textOf(folder)) plan.add(letter, stage, { files: [a("text")], text: letter });
    });
    const done = await run(plan, workFolder());
    expect(Object.keys(done)).toEqual(["a", "x", "y"]);
  });

  test("can be looked at before it is run", async () => {
    const { stage, log } = joinStage();
    const planOf = () => {
      const plan = new Plan();
      const a = plan.add("a", stage, { files: [], text: "x" });
      plan.when("a", "one step for each letter", async (folder) => {
        for (const letter of await textOf(folder)) plan.add(letter, stage, { files: [a("text")], text: letter });
      });
      return plan;
    };
    const work = workFolder();
    expect(await planState(planOf(), new Results(work))).toEqual({
      steps: [{ label: "a", done: false }],
      open: [{ after: "a", what: "one step for each letter" }],
    });
    expect(existsSync(work)).toBe(false);
    const done = await run(planOf(), work);
    await rm(done.x.folder, { recursive: true });
    const steps = [
      { label: "a", done: true },
      { label: "x", done: false },
    ];
    expect(await planState(planOf(), new Results(work))).toEqual({ steps, open: [] });
    expect(log).toEqual(["x", "x"]);
  });

  test("refuses two steps of one name, and one that takes from a later one", () => {
    const { stage } = joinStage();
    const plan = new Plan();
    plan.add("a", stage, { files: [] });
    expect(() => plan.add("a", stage, { files: [] })).toThrow(/two steps/);
    expect(() => plan.add("b", stage, { files: [{ $result: "c", path: "text" }] })).toThrow(/"b" comes before "c"/);
  });

  test("makes a result anew where what it stands for is gone", async () => {
    const work = workFolder();
    const out = join(root, "elsewhere");
    const stage: Stage<{ out: string }> = {
      name: "outside",
      version: 1,
      run: async ({ out }) => writeFile(out, "there"),
      isCurrent: async ({ out }) => existsSync(out),
    };
    const plan = new Plan();
    plan.add("outside", stage, { out });
    expect((await run(plan, work)).outside.reused).toBe(false);
    expect((await run(plan, work)).outside.reused).toBe(true);
    await rm(out);
    expect((await run(plan, work)).outside.reused).toBe(false);
    expect(existsSync(out)).toBe(true);
  });
});

describe("a step that is interrupted or fails", () => {
  /** Counts to four, keeps its count, and can be stopped in between. */
  const counting: Stage<{ fails?: boolean }> = {
    name: "count",
    version: 1,
    async run({ fails }, folder, { checkpoints, signal, onProgress }) {
      const file = join(checkpoints, "count");
      const start = existsSync(file) ? Number(await readFile(file, "utf8")) : 0;
      await mkdir(checkpoints, { recursive: true });
      for (let at = start + 1; at <= 4; at++) {
        await writeFile(file, String(at));
        onProgress?.("counting", at, 4);
        signal?.throwIfAborted();
        if (fails) throw new Error("cannot count");
      }
      await writeFile(join(folder, "text"), `from ${start}`);
    },
  };

  test("goes on from its checkpoint, which is gone with the result", async () => {
    const work = workFolder();
    const plan = new Plan();
    plan.add("count", counting, {});
    const controller = new AbortController();
    const onProgress: Progress = (_, done) => done === 3 && controller.abort(new Error("stopped"));
    await expect(run(plan, work, { signal: controller.signal, onProgress })).rejects.toThrow("stopped");
    expect(await readdir(work)).toEqual(["checkpoints"]);
    const { count } = await run(plan, work);
    expect(await textOf(count.folder)).toBe("from 3");
    expect(existsSync(join(work, "checkpoints"))).toBe(false);
  });

  test("ends the others, and its error is the one that is thrown", async () => {
    const plan = new Plan();
    plan.add("bad", counting, { fails: true });
    const waiting: Stage<object> = {
      name: "wait",
      version: 1,
      run: (_, __, { signal }) =>
        new Promise((_resolve, reject) => signal?.addEventListener("abort", () => reject(signal.reason))),
    };
    plan.add("wait", waiting, {});
    const here = inProcess();
    const sideBySide: Executor = { ...here, canStart: () => true };
    const work = workFolder();
    await expect(run(plan, work, { executor: sideBySide })).rejects.toThrow("cannot count");
    expect(await readdir(work)).toEqual(["checkpoints"]);
  });
});

test("steps of a stage share what is costly as long as they follow one another", async () => {
  const log: string[] = [];
  const stage = (name: string): Stage<object> => ({
    name,
    version: 1,
    async run(_, __, { share }) {
      const shared = await share("model", async () => {
        log.push(`${name} opens`);
        return { dispose: async () => void log.push(`${name} closes`) };
      });
      expect(shared).toHaveProperty("dispose");
      log.push(name);
    },
  });
  const plan = new Plan();
  const draw = stage("draw");
  plan.add("draw 1", draw, { of: 1 });
  plan.add("draw 2", draw, { of: 2 });
  plan.add("train", stage("train"), {});
  await run(plan, workFolder());
  expect(log).toEqual(["draw opens", "draw", "draw", "draw closes", "train opens", "train", "train closes"]);
});

test("progress of steps with known units is that of all of them", async () => {
  const stage: Stage<{ name: string }> = {
    name: "train",
    version: 1,
    async run({ name }, _, { onProgress }) {
      for (const done of [5, 10]) onProgress?.("training", done, 10, `${name} ${done}`);
    },
  };
  const plan = new Plan();
  for (const name of ["a", "b"]) plan.add(name, stage, { name }, { units: 10 });
  const seen: unknown[] = [];
  await run(plan, workFolder(), { onProgress: (...args) => seen.push(args) });
  expect(seen).toEqual([
    ["training", 5, 20, "a 5"],
    ["training", 10, 20, "a 10"],
    ["training", 15, 20, "a 10, b 5"],
    ["training", 20, 20, "a 10, b 10"],
  ]);
});
