import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import type { FolderFiles } from "./files.ts";
import { type AdapterRecord, adapterRecordText, type BundleManifest } from "./manifest.ts";
import { openBundle } from "./open-bundle.ts";
import { graphHash, sha256 } from "./sha256.ts";
import { signatureText, signedBytes } from "./signature.ts";

const hash = (contents: Uint8Array | string) => createHash("sha256").update(contents).digest("hex");
const encode = (text: string) => new TextEncoder().encode(text);

type Change = (contents: Map<string, Uint8Array>) => void | Promise<void>;

/** A bundle in memory; `byPath` makes it a folder whose graphs are opened by path, as in Node. */
async function bundle(byPath: boolean, change: Change = () => {}) {
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
    version: 2,
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
  contents.set("adapters/late.json", encode(await adapterRecordText(record)));
  contents.set("stray.txt", encode("not ours"));
  await change(contents);
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
const edit =
  (path: string, key: string, value: unknown): Change =>
  async (contents) => {
    const json = { ...JSON.parse(new TextDecoder().decode(contents.get(path))), [key]: value };
    const isRecord = path.startsWith("adapters/");
    contents.set(path, encode(isRecord ? await adapterRecordText(json) : JSON.stringify(json)));
  };

test("the hashes are SHA-256 as others compute it", async () => {
  expect(await sha256(encode("abc"))).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  expect(await graphHash([hash("graph"), hash("weights")])).toBe(hash(hash("graph") + hash("weights")));
});

test("a folder without a manifest is not a bundle", async () => {
  const { folder } = await bundle(false, (contents) => void contents.delete("manifest.json"));
  expect(await openBundle(folder, { verify: true })).toBeUndefined();
});

describe.each([
  ["read into memory", false],
  ["opened by path", true],
])("a bundle %s", (_, byPath) => {
  const damage = async (change: Change, path: string) => {
    const { folder } = await bundle(byPath, change);
    return (await openBundle(folder, { verify: true }))!.files.read(path);
  };

  test("gives what the manifest lists, and the tasks of adapters that came later", async () => {
    const { folder } = await bundle(byPath);
    const opened = (await openBundle(folder, { verify: true }))!;
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
    await expect(damage((contents) => void contents.delete(record), path)).rejects.toThrow(/late.json: .*no record/);
  });

  test("refuses a manifest that contradicts itself or is of another version", async () => {
    const other = "0".repeat(64);
    const open = async (key: string, value: unknown) =>
      openBundle((await bundle(byPath, edit("manifest.json", key, value))).folder);
    await expect(open("graph", other)).rejects.toThrow(/manifest.json: graph: contradicts/);
    await expect(open("profile", other)).rejects.toThrow(/manifest.json: profile: contradicts/);
    await expect(open("version", 2)).rejects.toThrow(/manifest.json: version: unknown version/);
    await expect(open("files", { "a.txt": { sha256: "abc", bytes: 1 } })).rejects.toThrow(
      /files.a.txt.sha256: .*SHA-256/,
    );
  });

  test("without verification takes files as they are", async () => {
    const { folder } = await bundle(byPath, set("unet/model.onnx", "something else"));
    const opened = (await openBundle(folder, { verify: false }))!;
    expect(new TextDecoder().decode(await opened.files.read("unet/model.onnx"))).toBe("something else");
  });
});

test("by path, sizes are compared before anything is hashed, and nothing is read into memory", async () => {
  const { folder, read } = await bundle(true, set("unet/model.onnx_data", "weight"));
  let hashed = 0;
  const digest = (path: string) => {
    hashed++;
    return folder.digest!(path);
  };
  const counting: FolderFiles = { ...folder, digest };
  await expect(openBundle(counting, { verify: true })).rejects.toThrow(/7 bytes, got 6/);
  expect(hashed).toBe(0);
  expect(read).toEqual(["manifest.json"]);
  const missing = await bundle(true, (contents) => void contents.delete("profile.json"));
  await expect(openBundle(missing.folder, { verify: true })).rejects.toThrow(/profile.json: is missing/);
});

describe("what is absent permits nothing", () => {
  const open = async (change: Change, path?: string, byPath = false) => {
    const opened = await openBundle((await bundle(byPath, change)).folder);
    return path === undefined ? opened : opened?.files.read(path);
  };
  const drop = (path: string) => (contents: Map<string, Uint8Array>) => void contents.delete(path);

  test("a record without an entry for its file", async () => {
    await expect(open(edit("adapters/late.json", "files", {}), "adapters/late.safetensors")).rejects.toThrow(
      /late\.safetensors: is not in the bundle's manifest/,
    );
  });

  test("a record under another adapter's name", async () => {
    const swap: Change = (contents) => {
      contents.set("adapters/other.json", contents.get("adapters/late.json")!);
      contents.set("adapters/other.safetensors", contents.get("adapters/late.safetensors")!);
    };
    await expect(open(swap)).rejects.toThrow(
      /other\.json: is the record of another adapter .*expected other, got late/,
    );
  });

  test("a record whose figures or task were changed after it was written", async () => {
    const change: Change = (contents) => {
      const text = new TextDecoder().decode(contents.get("adapters/late.json"));
      contents.set("adapters/late.json", encode(text.replace('"steps": 3', '"steps": 4')));
    };
    await expect(open(change)).rejects.toThrow(/late\.json: recordHash: was changed after it was written/);
  });

  test("a listed file that is gone, also one that would be optional", async () => {
    const opened = await openBundle((await bundle(false, drop("profile.json"))).folder);
    await expect(opened?.files.exists("profile.json")).rejects.toThrow(
      /profile\.json: is missing, though the manifest/,
    );
  });

  test("a file beside a graph that the manifest does not list: the graph could take its weights from it", async () => {
    const add: Change = (contents) => void contents.set("unet/extra.bin", encode("weights"));
    await expect(open(add, undefined, true)).rejects.toThrow(/unet\/extra\.bin: is not in the bundle's manifest/);
    await expect(open(() => {}, "stray.txt")).rejects.toThrow(/stray\.txt: is not in the bundle's manifest/);
  });

  test.each(["../secret.txt", "/dev/zero", "a/../../b", "unet\\x"])("a manifest that names %s", async (path) => {
    const entry = { [path]: { sha256: "0".repeat(64), bytes: 1 } };
    await expect(open(edit("manifest.json", "files", entry))).rejects.toThrow(
      /manifest\.json: files: names a file outside/,
    );
    await expect(open(edit("manifest.json", "component", path))).rejects.toThrow(/component: names a file outside/);
  });

  test("keys that a later version adds are kept", async () => {
    const opened = await open(edit("manifest.json", "license", "CC0"));
    expect(opened).toMatchObject({ manifest: { license: "CC0" } });
    expect(await open(edit("adapters/late.json", "author", "somebody"), "adapters/late.safetensors")).toBeDefined();
  });
});

describe("a bundle that is pinned or signed", () => {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const pem = publicKey.export({ type: "spki", format: "pem" }).toString();
  const raw = publicKey.export({ type: "spki", format: "der" }).subarray(12);
  /** Signs with Node's own implementation: the runtime's checks by Web Cryptography. */
  const signFile = (contents: Map<string, Uint8Array>, path: string) => {
    const signature = sign(null, signedBytes(contents.get(path)!), privateKey);
    contents.set(`${path}.sig`, encode(signatureText(raw, signature)));
  };
  const signed: Change = (contents) => {
    signFile(contents, "manifest.json");
    signFile(contents, "adapters/late.json");
  };
  const open = async (change: Change, keys: string[] = [pem]) =>
    openBundle((await bundle(false, change)).folder, { trustedKeys: keys });

  test("opens by the hash of its manifest, and no other does", async () => {
    const { folder } = await bundle(false);
    const manifest = hash(await folder.read("manifest.json"));
    expect(await openBundle(folder, { manifest })).toBeDefined();
    const other = (await bundle(false, edit("manifest.json", "license", "CC0"))).folder;
    await expect(openBundle(other, { manifest })).rejects.toThrow(/is not the manifest that is asked for/);
    const bare = (await bundle(false, (contents) => void contents.delete("manifest.json"))).folder;
    await expect(openBundle(bare, { manifest })).rejects.toThrow(/manifest\.json: is missing/);
  });

  test("opens with the key that signed it, as PEM and as bytes", async () => {
    expect((await open(signed))?.tasks.has("late")).toBe(true);
    expect(await open(signed, [raw.toString("base64")])).toBeDefined();
  });

  test("is refused with another key, without a signature, and after a change", async () => {
    const stranger = generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "pem" }).toString();
    await expect(open(signed, [stranger])).rejects.toThrow(/manifest\.json: is signed with a key that is not trusted/);
    await expect(open(() => {})).rejects.toThrow(/manifest\.json: is not signed/);
    const unsignedAdapter: Change = (contents) => signFile(contents, "manifest.json");
    await expect(open(unsignedAdapter)).rejects.toThrow(/adapters\/late\.json: is not signed/);
    const changed: Change = async (contents) => {
      signed(contents);
      await edit("adapters/late.json", "rank", 5)(contents);
    };
    await expect(open(changed)).rejects.toThrow(/adapters\/late\.json: was changed after it was signed/);
    await expect(open(signed, ["not a key"])).rejects.toThrow(/is not a public ed25519 key/);
  });
});
