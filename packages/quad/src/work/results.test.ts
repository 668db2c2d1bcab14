import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, utimesSync } from "node:fs";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { temporaryName } from "../files/temporary.ts";
import { keyOf, Results } from "./results.ts";

const root = temporaryFolder();
let count = 0;
const newResults = () => new Results(join(root, String(count++)));
const write = (text: string) => (folder: string) => writeFile(join(folder, "result.txt"), text);

/** A name of a process of this machine that has ended. */
function leftover(of: string): string {
  const { pid } = spawnSync(process.execPath, ["-e", ""]);
  return temporaryName(of).replace(`-${process.pid}-`, `-${pid}-`);
}

test("a key stands for what makes a result, its version and its input", () => {
  const keys = [
    keyOf("expose", 1, { a: 1 }),
    keyOf("expose", 2, { a: 1 }),
    keyOf("expose", 1, { a: 2 }),
    keyOf("x", 1, { a: 1 }),
  ];
  expect(new Set(keys).size).toBe(4);
  expect(keyOf("expose", 1, { a: 1 })).toBe(keys[0]);
});

describe("a result", () => {
  test("is made once for a key", async () => {
    const results = newResults();
    const key = keyOf("stage", 1, {});
    expect(results.find("record a", key)).toBeNull();
    const folder = await results.make("record a", key, write("first"));
    expect(await results.make("record a", key, write("second"))).toBe(folder);
    expect(results.find("record a", key)).toBe(folder);
    expect(await readFile(join(folder, "result.txt"), "utf8")).toBe("first");
  });

  test("that fails leaves nothing", async () => {
    const results = newResults();
    const failing = async (folder: string) => {
      await write("half")(folder);
      throw new Error("no space left");
    };
    await expect(results.make("record", "0".repeat(64), failing)).rejects.toThrow("no space left");
    expect(await readdir(results.folder)).toEqual([]);
  });

  test("of a killed process is made anew, and its leftovers go", async () => {
    const results = newResults();
    const path = results.path("record", "0".repeat(64));
    const half = join(results.folder, leftover(path.slice(results.folder.length + 1)));
    await mkdir(half, { recursive: true });
    await writeFile(join(half, "half.txt"), "half");
    const folder = await results.make("record", "0".repeat(64), write("whole"));
    expect(await readdir(folder)).toEqual(["result.txt"]);
    expect(existsSync(half)).toBe(false);
  });

  test("may be made by several at once: each writes to a folder of its own, and one result stays", async () => {
    const results = newResults();
    const key = "a".repeat(64);
    const folders: string[] = [];
    let arrived = 0;
    let open = () => {};
    const gate = new Promise<void>((resolve) => (open = resolve));
    const slow = async (folder: string) => {
      folders.push(folder);
      await write("the same")(folder);
      if (++arrived === 2) open();
      await gate;
      expect(readdirSync(folder)).toEqual(["result.txt"]);
    };
    const [one, other] = await Promise.all([
      results.make("record", key, slow),
      new Results(results.folder).make("record", key, slow),
    ]);
    expect(one).toBe(other);
    expect(new Set(folders).size).toBe(2);
    expect(await readdir(results.folder)).toEqual([one.slice(results.folder.length + 1)]);
  });

  test("may be a value, which is found again where it does not fit its schema", async () => {
    const results = newResults();
    const key = "b".repeat(64);
    const schema = z.strictObject({ noise: z.number() });
    let runs = 0;
    const find = () => results.value("noise", key, schema, async () => ({ noise: ++runs }));
    expect([await find(), await find()]).toEqual([{ noise: 1 }, { noise: 1 }]);
    for (const damaged of ["{", '{"noise":"loud"}']) {
      await writeFile(results.path("noise", key, ".json"), damaged);
      expect(await find()).toEqual({ noise: runs });
    }
    expect(runs).toBe(3);
  });
});

describe("what is not needed any more", () => {
  test("goes, with leftovers and checkpoints; everything else stays", async () => {
    const results = newResults();
    const old = await results.make("expose", "1".repeat(64), write("old"));
    const current = await results.make("expose", "2".repeat(64), write("current"));
    const picture = await results.file("a-1", "3".repeat(64), ".png", (path) => writeFile(path, ""));
    await mkdir(join(results.folder, leftover("observe-0000000000000000")));
    for (const key of ["1", "2"]) await mkdir(results.checkpoints("expose", key.repeat(64)), { recursive: true });
    await mkdir(join(results.folder, "ablation"));
    await writeFile(join(results.folder, "hashes.json"), "{}");
    await results.keepOnly([current]);
    expect(existsSync(old) || existsSync(picture)).toBe(false);
    const name = current.slice(results.folder.length + 1);
    expect((await readdir(results.folder)).sort()).toEqual(["ablation", "checkpoints", name, "hashes.json"]);
    expect(await readdir(join(results.folder, "checkpoints"))).toEqual([name]);
    await new Results(join(results.folder, "none")).keepOnly([]);
  });

  test("stays while another works with it or writes it", async () => {
    const results = newResults();
    const theirs = await results.make("record", "1".repeat(64), write("theirs"));
    const other = new Results(results.folder);
    await other.reserve([theirs, other.path("observe", "2".repeat(64))]);
    const writing = other.make("observe", "2".repeat(64), async (folder) => {
      await write("theirs")(folder);
      await results.keepOnly([]);
      expect(existsSync(theirs) && existsSync(folder)).toBe(true);
    });
    expect(await readdir(await writing)).toEqual(["result.txt"]);
    await other.release();
    await results.keepOnly([]);
    expect(await readdir(results.folder)).toEqual([]);
  });

  test("is not kept for a process that has ended", async () => {
    const results = newResults();
    const path = await results.make("record", "1".repeat(64), write(""));
    const dead = join(results.folder, leftover("in-use"));
    await writeFile(dead, JSON.stringify([path.slice(results.folder.length + 1)]));
    await results.keepOnly([]);
    expect(await readdir(results.folder)).toEqual([]);
  });
});

test("what other machines write is theirs until it has rested for a week", async () => {
  const results = newResults();
  await mkdir(results.folder);
  const mark = temporaryName("observe-0000000000000000").replace(/\.([0-9a-f]{8})-/, ".0000abcd-");
  const path = join(results.folder, mark);
  await mkdir(path);
  await results.keepOnly([]);
  expect(existsSync(path)).toBe(true);
  const longAgo = new Date(Date.now() - 8 * 24 * 3_600_000);
  utimesSync(path, longAgo, longAgo);
  await results.keepOnly([]);
  expect(existsSync(path)).toBe(false);
});
