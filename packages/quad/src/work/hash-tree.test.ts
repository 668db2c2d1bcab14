import { createHash } from "node:crypto";
import { mkdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
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

test("a file is read again only when size or time changed", async () => {
  const file = join(folder, "weights");
  const time = new Date("2024-05-01T12:00:00Z");
  await writeFile(file, "first");
  await utimes(file, time, time);
  const cache = await HashCache.open(cachePath);
  expect(await cache.hash(file)).toBe(sha256("first"));
  await cache.save();

  // Same size, same time: the remembered hash shows that the file was not read.
  await writeFile(file, "other");
  await utimes(file, time, time);
  const reopened = await HashCache.open(cachePath);
  expect(await reopened.hash(file)).toBe(sha256("first"));

  await utimes(file, time, new Date(time.getTime() + 1000));
  expect(await reopened.hash(file)).toBe(sha256("other"));
  await writeFile(file, "longer text");
  expect(await reopened.hash(file)).toBe(sha256("longer text"));
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
