import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { removeStale, runStage } from "./stage.ts";

const root = temporaryFolder();
let count = 0;
const workFolder = () => join(root, String(count++));

/** A stage that writes its name and counts how often it ran. */
function counting() {
  const state = { runs: 0 };
  const run = async (folder: string) => {
    state.runs++;
    await writeFile(join(folder, "result.txt"), `run ${state.runs}`);
  };
  return { state, run };
}

describe("a stage", () => {
  test("runs once for the same inputs, again for others", async () => {
    const work = workFolder();
    const { state, run } = counting();
    const first = await runStage(work, "expose", { weight: 1 }, run);
    const second = await runStage(work, "expose", { weight: 1 }, run);
    const other = await runStage(work, "expose", { weight: 2 }, run);
    expect([first.reused, second.reused, other.reused]).toEqual([false, true, false]);
    expect(second).toEqual({ ...first, reused: true });
    expect(other.folder).not.toBe(first.folder);
    expect(state.runs).toBe(2);
    expect(await readFile(join(first.folder, "result.txt"), "utf8")).toBe("run 1");
    expect((await runStage(work, "observe", { weight: 1 }, run)).key).not.toBe(first.key);
  });

  test("that fails leaves nothing and can be run again", async () => {
    const work = workFolder();
    const failing = async (folder: string) => {
      await writeFile(join(folder, "half.txt"), "half");
      throw new Error("no space left");
    };
    await expect(runStage(work, "record", {}, failing)).rejects.toThrow("no space left");
    expect(await readdir(work)).toEqual([]);
    const { state, run } = counting();
    expect((await runStage(work, "record", {}, run)).reused).toBe(false);
    expect(state.runs).toBe(1);
  });

  test("that was killed is run again: half a result is no result", async () => {
    const work = workFolder();
    const { run } = counting();
    const { folder } = await runStage(workFolder(), "record", {}, run);
    const temporary = `${join(work, folder.slice(folder.lastIndexOf("record")))}.tmp`;
    await mkdir(temporary, { recursive: true });
    await writeFile(join(temporary, "half.txt"), "half");
    const resumed = await runStage(work, "record", {}, run);
    expect(resumed.reused).toBe(false);
    expect(await readdir(resumed.folder)).toEqual(["result.txt"]);
    expect(existsSync(temporary)).toBe(false);
  });

  test("that writes elsewhere is run again when that is gone", async () => {
    const work = workFolder();
    const { state, run } = counting();
    await runStage(work, "compile", {}, run, async () => false);
    expect((await runStage(work, "compile", {}, run, async () => true)).reused).toBe(true);
    expect((await runStage(work, "compile", {}, run, async () => false)).reused).toBe(false);
    expect(state.runs).toBe(2);
  });
});

test("stale results and leftovers go, everything else stays", async () => {
  const work = workFolder();
  const { run } = counting();
  const old = await runStage(work, "expose", 1, run);
  const current = await runStage(work, "expose", 2, run);
  await mkdir(`${old.folder}.tmp`);
  await mkdir(join(work, "ablation"));
  await writeFile(join(work, "hashes.json"), "{}");
  await removeStale(work, [current]);
  const kept = ["ablation", "hashes.json", current.folder.slice(work.length + 1)];
  expect((await readdir(work)).sort()).toEqual(kept.sort());
  await removeStale(join(work, "none"), []);
});
