import { createHash } from "node:crypto";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import type { FolderFiles } from "./files.ts";
import { type AdapterRecord, type BundleManifest, graphHash, openBundle, sha256 } from "./manifest.ts";

const hash = (contents: Uint8Array | string) => createHash("sha256").update(contents).digest("hex");
const encode = (text: string) => new TextEncoder().encode(text);

/** A bundle in memory; `byPath` makes it a folder whose graphs are opened by path, as in Node. */
function bundle(byPath: boolean, change: (contents: Map<string, Uint8Array>) => void = () => {}) {
  const contents = new Map<string, Uint8Array>([
    ["unet/model.onnx", encode("graph")],
    ["unet/model.onnx_data", encode("weights")],
    ["profile.json", encode("{}")],
  ]);
  const files = Object.fromEntries(
    [...contents].map(([path, bytes]) => [path, { sha256: hash(bytes), bytes: bytes.length }]),
  );
  const manifest: BundleManifest = {
    format: "quad-bundle",
    version: 1,
    target: { kind: "cpu" },
    component: "unet",
    graph: hash(hash("graph") + hash("weights")),
    profile: hash("{}"),
    files,
  };
  const codes = encode("codes");
  const record: AdapterRecord = {
    format: "quad-bundle-adapter",
    version: 1,
    name: "late",
    source: "late.safetensors",
    graph: manifest.graph,
    profile: manifest.profile,
    rank: 4,
    slots: 1,
    withoutSlot: [],
    fit: { productSqnr: 40, alignmentError: 0.01, errorBeforeAlignment: 0.02, clipped: 0 },
    task: { adapter: "late", steps: 3 },
    files: { "late.safetensors": { sha256: hash(codes), bytes: codes.length } },
  };
  contents.set("manifest.json", encode(JSON.stringify(manifest)));
  contents.set("adapters/late.safetensors", codes);
  contents.set("adapters/late.json", encode(JSON.stringify(record)));
  contents.set("stray.txt", encode("not ours"));
  change(contents);
  const read: string[] = [];
  const folder: FolderFiles = {
    async read(path) {
      read.push(path);
      return contents.get(path)!;
    },
    exists: async (path) => contents.has(path),
    list: async (path) =>
      [...contents.keys()].filter((name) => name.startsWith(`${path}/`)).map((name) => name.slice(path.length + 1)),
    describe: (path) => `bundle/${path}`,
    ...(byPath
      ? {
          localPath: (path: string) => `/bundle/${path}`,
          size: async (path: string) => contents.get(path)?.length,
          digest: async (path: string) => hash(contents.get(path)!),
        }
      : {}),
  };
  return { folder, read };
}

const set = (path: string, text: string) => (contents: Map<string, Uint8Array>) => {
  contents.set(path, encode(text));
};
/** Changes a key of a JSON file. */
const edit = (path: string, key: string, value: unknown) => (contents: Map<string, Uint8Array>) => {
  const json = JSON.parse(new TextDecoder().decode(contents.get(path)));
  contents.set(path, encode(JSON.stringify({ ...json, [key]: value })));
};

test("the hashes are SHA-256 as others compute it", async () => {
  expect(await sha256(encode("abc"))).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  expect(await graphHash([hash("graph"), hash("weights")])).toBe(hash(hash("graph") + hash("weights")));
});

test("a folder without a manifest is not a bundle", async () => {
  const { folder } = bundle(false, (contents) => contents.delete("manifest.json"));
  expect(await openBundle(folder, true)).toBeUndefined();
});

describe.each([
  ["read into memory", false],
  ["opened by path", true],
])("a bundle %s", (_, byPath) => {
  const damage = async (change: (contents: Map<string, Uint8Array>) => void, path: string) => {
    const { folder } = bundle(byPath, change);
    return (await openBundle(folder, true))!.files.read(path);
  };

  test("gives what the manifest lists, and the tasks of adapters that came later", async () => {
    const { folder } = bundle(byPath);
    const opened = (await openBundle(folder, true))!;
    for (const path of ["unet/model.onnx", "unet/model.onnx_data", "profile.json", "adapters/late.safetensors"])
      expect(await opened.files.read(path)).toEqual(await folder.read(path));
    expect([...opened.tasks]).toEqual([["late", { adapter: "late", steps: 3 }]]);
    expect(await opened.files.exists("stray.txt")).toBe(false);
    expect(opened.files.localPath?.("unet/model.onnx")).toBe(byPath ? "/bundle/unet/model.onnx" : undefined);
  });

  test.each([
    ["unet/model.onnx", "graqh", /^bundle\/unet\/model.onnx: .*expected SHA-256 \w{64}, got SHA-256 \w{64}/],
    ["unet/model.onnx_data", "weight", /^bundle\/unet\/model.onnx_data: .*expected 7 bytes, got 6 bytes/],
    ["adapters/late.safetensors", "cudes", /^bundle\/adapters\/late.safetensors: .*expected SHA-256/],
  ])("refuses another %s", async (path, text, message) => {
    const refused = expect(damage(set(path, text), path)).rejects;
    await refused.toThrow(message);
    await expect(damage(set(path, text), path)).rejects.toBeInstanceOf(InputError);
  });

  test("refuses adapters of another graph or profile, or without a record, by name", async () => {
    const path = "adapters/late.safetensors";
    const other = "0".repeat(64);
    const record = "adapters/late.json";
    await expect(damage(edit(record, "graph", other), path)).rejects.toThrow(/late.json: graph: .*another graph/);
    await expect(damage(edit(record, "profile", other), path)).rejects.toThrow(/late.json: profile: .*another quant/);
    await expect(damage((contents) => contents.delete(record), path)).rejects.toThrow(/late.json: .*no record/);
  });

  test("refuses a manifest that contradicts itself or is of another version", async () => {
    const other = "0".repeat(64);
    const open = (key: string, value: unknown) =>
      openBundle(bundle(byPath, edit("manifest.json", key, value)).folder, true);
    await expect(open("graph", other)).rejects.toThrow(/manifest.json: graph: contradicts/);
    await expect(open("profile", other)).rejects.toThrow(/manifest.json: profile: contradicts/);
    await expect(open("version", 2)).rejects.toThrow(/manifest.json: version: unknown version/);
    await expect(open("files", { "a.txt": { sha256: "abc", bytes: 1 } })).rejects.toThrow(
      /files.a.txt.sha256: .*SHA-256/,
    );
  });

  test("without verification takes files as they are", async () => {
    const { folder } = bundle(byPath, set("unet/model.onnx", "something else"));
    const opened = (await openBundle(folder, false))!;
    expect(new TextDecoder().decode(await opened.files.read("unet/model.onnx"))).toBe("something else");
  });
});

test("by path, sizes are compared before anything is hashed, and nothing is read into memory", async () => {
  const { folder, read } = bundle(true, set("unet/model.onnx_data", "weight"));
  let hashed = 0;
  const digest = (path: string) => {
    hashed++;
    return folder.digest!(path);
  };
  const counting: FolderFiles = { ...folder, digest };
  await expect(openBundle(counting, true)).rejects.toThrow(/7 bytes, got 6/);
  expect(hashed).toBe(0);
  expect(read).toEqual(["manifest.json"]);
  const missing = bundle(true, (contents) => contents.delete("profile.json"));
  await expect(openBundle(missing.folder, true)).rejects.toThrow(/profile.json: is missing/);
});
