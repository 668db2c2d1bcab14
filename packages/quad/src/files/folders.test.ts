import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { writeFileAtomically } from "./atomic.ts";
import { withFolderLock } from "./folder-lock.ts";
import { refuseForeignFolder } from "./overwrite.ts";
import { replaceFolder, restoreFolder } from "./replace-folder.ts";
import { isAbandoned, removeAbandoned, replacedSuffix, temporaryName } from "./temporary.ts";

const root = temporaryFolder();
let count = 0;
function place(): string {
  const parent = join(root, String(count++));
  mkdirSync(parent);
  return join(parent, "out");
}
const write = (name: string) => (folder: string) => writeFileAtomically(join(folder, name), name);

/** The name as a process of this machine that has ended would have given it. */
function ofDeadProcess(name: string): string {
  const { pid } = spawnSync(process.execPath, ["-e", ""]);
  return name.replace(`-${process.pid}-`, `-${pid}-`);
}

describe("a temporary name", () => {
  test("is its process's as long as that runs", () => {
    const name = temporaryName("out");
    expect(isAbandoned(name, 0)).toBe(false);
    expect(isAbandoned(ofDeadProcess(name), Date.now())).toBe(true);
    expect(temporaryName("out")).not.toBe(name);
    for (const other of ["out", ".out.tmp", ".out.0123.tmp", ".gitignore"]) expect(isAbandoned(other, 0)).toBe(false);
  });

  test("with this process's number but of an earlier one is a leftover", () => {
    const earlier = temporaryName("out").replace(/-[0-9a-f]{8}\./, "-00000000.");
    expect(isAbandoned(earlier, 0)).toBe(true);
    expect(isAbandoned(earlier, Date.now())).toBe(false);
  });

  test("that was left is removed, where its owner is gone and it is the one asked for", async () => {
    const parent = dirname(place());
    const [left, other, own] = [
      ofDeadProcess(temporaryName("a")),
      ofDeadProcess(temporaryName("b")),
      temporaryName("a"),
    ];
    const only = ofDeadProcess(temporaryName(`a${replacedSuffix}`));
    for (const name of [left, other, own, only, "a"]) mkdirSync(join(parent, name));
    await removeAbandoned(parent, "a");
    expect(readdirSync(parent).sort()).toEqual([other, own, only, "a"].sort());
    // A folder that was replaced may be the only whole one: it does not go unasked.
    await removeAbandoned(parent);
    expect(readdirSync(parent).sort()).toEqual([own, only, "a"].sort());
  });
});

describe("a folder that is replaced", () => {
  test("is whole, and nothing else is left", async () => {
    const out = place();
    expect(await replaceFolder(out, (folder) => write("one")(folder).then(() => 1))).toBe(1);
    await replaceFolder(out, write("two"), async () => expect(readdirSync(out)).toEqual(["one"]));
    expect(readdirSync(out)).toEqual(["two"]);
    expect(readdirSync(dirname(out))).toEqual(["out"]);
  });

  test("stays as it was where writing fails, or the last look at it", async () => {
    const out = place();
    await replaceFolder(out, write("one"));
    const failing = () => Promise.reject(new Error("no space left"));
    await expect(replaceFolder(out, failing)).rejects.toThrow("no space left");
    await expect(replaceFolder(out, write("two"), failing)).rejects.toThrow("no space left");
    expect(readdirSync(out)).toEqual(["one"]);
    expect(readdirSync(dirname(out))).toEqual(["out"]);
  });

  test("is put back by the next one who looks, where the process was killed between two renames", async () => {
    const out = place();
    await replaceFolder(out, write("one"));
    renameSync(out, join(dirname(out), ofDeadProcess(temporaryName(`out${replacedSuffix}`))));
    mkdirSync(join(dirname(out), ofDeadProcess(temporaryName("out"))));
    await restoreFolder(out);
    expect(readdirSync(out)).toEqual(["one"]);
    await replaceFolder(out, write("two"));
    expect(readdirSync(dirname(out))).toEqual(["out"]);
    await restoreFolder(join(dirname(out), "never", "there"));
  });

  test("may be replaced by several at once: one after another, each whole", async () => {
    const out = place();
    const names = ["a", "b", "c", "d"];
    await Promise.all(names.map((name) => replaceFolder(out, write(name))));
    expect(names).toContain(readdirSync(out).join());
    expect(readdirSync(dirname(out))).toEqual(["out"]);
  });
});

describe("a lock", () => {
  test("lets one in at a time, and nothing in between is lost", async () => {
    const out = place();
    const file = join(dirname(out), "count");
    writeFileSync(file, "0");
    const increase = async () => {
      const value = Number(readFileSync(file, "utf8"));
      await new Promise((resolve) => setImmediate(resolve));
      writeFileSync(file, String(value + 1));
    };
    await Promise.all(Array.from({ length: 8 }, () => withFolderLock(out, increase)));
    expect(readFileSync(file, "utf8")).toBe("8");
    expect(readdirSync(dirname(out))).toEqual(["count"]);
  });

  test("of a process that was killed is taken over", async () => {
    const out = place();
    const lock = join(dirname(out), `.${basename(out)}.lock`);
    writeFileSync(lock, ofDeadProcess(temporaryName("lock")));
    expect(await withFolderLock(out, async () => existsSync(lock))).toBe(true);
    expect(readdirSync(dirname(out))).toEqual([]);
  });

  test("is given back where the work fails", async () => {
    const out = place();
    await expect(withFolderLock(out, () => Promise.reject(new Error("slip")))).rejects.toThrow("slip");
    expect(await withFolderLock(out, async () => "in")).toBe("in");
  });
});

test("a folder of another command, and one that holds something besides, is not overwritten", async () => {
  const own = { mark: "slots.json", otherwise: "is foreign", other: { mark: "manifest.json", what: "is a bundle" } };
  const refuse = (out: string) => refuseForeignFolder(out, { ...own, isOwn: (name) => name === "slots.json" });
  const out = place();
  await refuse(out);
  mkdirSync(out);
  await refuse(out);
  for (const name of ["slots.json", ".DS_Store"]) writeFileSync(join(out, name), "");
  await refuse(out);
  writeFileSync(join(out, "notes.txt"), "");
  await expect(refuse(out)).rejects.toThrow(/would be lost .*got notes\.txt/);
  writeFileSync(join(out, "manifest.json"), "");
  await expect(refuse(out)).rejects.toThrow(/is a bundle/);
});
