import { createHash } from "node:crypto";
import { mkdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { HashCache } from "./hash-tree.ts";

const folder = temporaryFolder();
const cachePath = join(folder, "cache", "hashes.json");
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

test("files hash to SHA-256, folders to their files' hashes by name", async () => {
  const tree = join(folder, "tree");
  await mkdir(join(tree, "deep"), { recursive: true });
  await writeFile(join(tree, "b"), "two");
  await writeFile(join(tree, "a"), "one");
  await writeFile(join(tree, "deep", "c"), "three");
  await writeFile(join(tree, ".hidden"), "left out");
  const cache = await HashCache.open(cachePath);
  expect(await cache.hash(join(tree, "a"))).toBe(sha256("one"));
  expect(await cache.hash(tree)).toEqual([
    ["a", sha256("one")],
    ["b", sha256("two")],
    ["deep", [["c", sha256("three")]]],
  ]);
  await rm(join(tree, "b"));
  expect(await cache.hash(tree)).not.toContainEqual(["b", sha256("two")]);
});

test("a file is read again when anything changed, also where size and modification time were kept", async () => {
  const file = join(folder, "weights");
  const time = new Date("2024-05-01T12:00:00Z");
  await writeFile(file, "first");
  await utimes(file, time, time);
  const cache = await HashCache.open(cachePath);
  expect(await cache.hash(file)).toBe(sha256("first"));
  await cache.save();

  // A remembered hash that is another than the file's shows that the file is not read.
  const kept = JSON.parse(await readFile(cachePath, "utf8"));
  kept[resolve(file)].sha256 = sha256("remembered");
  await writeFile(cachePath, JSON.stringify(kept));
  expect(await (await HashCache.open(cachePath)).hash(file)).toBe(sha256("remembered"));

  await writeFile(file, "other");
  await utimes(file, time, time);
  expect(await (await HashCache.open(cachePath)).hash(file)).toBe(sha256("other"));
});

test("a damaged cache is started anew, a missing file is an error", async () => {
  const file = join(folder, "file");
  await writeFile(file, "text");
  await writeFile(cachePath, '{"half": ');
  const cache = await HashCache.open(cachePath);
  expect(await cache.hash(file)).toBe(sha256("text"));
  await cache.save();
  expect(Object.keys(JSON.parse(await readFile(cachePath, "utf8")))).toEqual([file]);
  await expect(cache.hash(join(folder, "none"))).rejects.toMatchObject({ code: "ENOENT" });
});
