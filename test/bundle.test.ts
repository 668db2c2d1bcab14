import { createHash, generateKeyPairSync } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError, parseSafetensors, type SafetensorsInput, serializeSafetensors } from "@quad-lora/base";
import {
  type BundleManifest,
  fetchFiles,
  openPipeline,
  type Pipeline,
  readOnnxAdapter,
  type Selection,
} from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import {
  addToBundle,
  type BuildConfig,
  type BuildResult,
  build,
  bundleEncodings,
  compileBundle,
  folderFiles,
  importEncodings,
  openFolder,
  planOfBuild,
  type pointEncoding,
  readAimet,
  readImage,
  readProfile,
  showBundle,
  signBundle,
  storageSizes,
  storageTable,
  verifyBundle,
} from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { pocketFolder } from "./helpers/exposed-pocket.ts";
import { psnr } from "./helpers/pictures.ts";
import { pocketVariant } from "./helpers/pocket-variants.ts";
import { adapterTensors, fewLayers, loadSmallBuild, scratchFolder, snapshot } from "./helpers/small-build.ts";

let folder: string;
let config: BuildConfig;
let bundle: string;
let exposed: string;
let profile: string;
let result: BuildResult;

beforeAll(async () => {
  folder = await scratchFolder();
  // Weights in a second file, as large models have them.
  config = await loadSmallBuild(folder, { model: await pocketVariant("external data") });
  result = await build(config);
  bundle = config.out;
  exposed = join(result.stages.expose.folder, "exposed");
  profile = join(result.stages.profile.folder, "profile.json");
}, 300_000);

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));

const graphBytes = (root: string) =>
  ["unet/model.onnx", "unet/model.onnx_data"].reduce((sum, path) => sum + statSync(join(root, path)).size, 0);

let copies = 0;
/** A copy of the bundle, to be damaged. */
function copyOfBundle(): string {
  const copy = join(folder, `copy ${copies++}`);
  cpSync(bundle, copy, { recursive: true });
  return copy;
}

/** Changes one byte in the middle of a file. */
function flipByte(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length >> 1] ^= 1;
  writeFileSync(path, bytes);
}

const request = { prompt: "crab animal marine", seed: 3, steps: 4 };

async function draw(pipeline: Pipeline, task: string): Promise<Uint8Array> {
  await pipeline.use(task);
  const image = task === "sketch" ? await readImage(join(pocketFolder, "samples/sketch-crab.png")) : undefined;
  return (await pipeline.generate({ ...request, ...(image ? { image } : {}) })).data;
}

describe("what a build writes", () => {
  test("one graph of 8-bit weights, adapters as codes, and a manifest of every file", () => {
    const manifest: BundleManifest = json(join(bundle, "manifest.json"));
    const { "manifest.json": _, ...files } = snapshot(bundle);
    const others = Object.fromEntries(Object.entries(files).filter(([path]) => !path.startsWith("adapters/")));
    expect(Object.fromEntries(Object.entries(manifest.files).map(([path, entry]) => [path, entry.sha256]))).toEqual(
      others,
    );
    const graph = ["unet/model.onnx", "unet/model.onnx_data"].map((path) => manifest.files[path].sha256);
    expect(manifest.graph).toBe(sha256(new TextEncoder().encode(graph.join(""))));
    expect(manifest.profile).toBe(sha256(readFileSync(profile)));
    expect(manifest.target).toEqual({ kind: "cpu", operators: ["com.microsoft.MatMulIntegerToFloat"] });
    expect(graphBytes(bundle) / graphBytes(exposed)).toBeLessThan(0.31);
    for (const name of ["flat", "sketch"]) {
      const { tensors, metadata } = parseSafetensors(readFileSync(join(bundle, `adapters/${name}.safetensors`)), name);
      expect(new Set([...tensors.values()].map(({ dtype }) => dtype))).toEqual(new Set(["I8"]));
      expect([...tensors.keys()].sort()).toEqual(
        json(join(bundle, "slots.json"))
          .components.unet.slots.flatMap(({ inputA, inputB }: Record<string, string>) => [inputA, inputB])
          .sort(),
      );
      expect(metadata).toMatchObject({ "quad.graph": manifest.graph, "quad.profile": manifest.profile });
      const record = json(join(bundle, `adapters/${name}.json`));
      for (const [file, entry] of Object.entries<{ sha256: string; bytes: number }>(record.files)) {
        const contents = readFileSync(join(bundle, "adapters", file));
        expect(entry).toEqual({ sha256: sha256(contents), bytes: contents.length });
      }
      expect(record.fit.measured).toMatchObject({ calls: 2 });
      expect(record.fit.measured.sqnr).toBeGreaterThan(25);
      expect(record.fit.alignmentError).toBeLessThan(record.fit.errorBeforeAlignment);
    }
    expect(Object.keys(json(join(bundle, "tasks.json")).tasks)).toEqual(["base", "flat", "sketch"]);
    expect(readdirSync(folder).filter((name) => name.endsWith("tmp"))).toEqual([]);
  });

  test("draws what full precision draws", async () => {
    const [quantized, exact] = [await openFolder(bundle), await openFolder(exposed)];
    const pictures = new Map<string, Uint8Array>();
    for (const task of ["base", "flat", "sketch"]) {
      const picture = await draw(quantized, task);
      expect({ task, psnr: psnr(picture, await draw(exact, task)) }).toEqual({ task, psnr: expect.any(Number) });
      expect(psnr(picture, await draw(exact, task))).toBeGreaterThan(27);
      pictures.set(task, picture);
    }
    // The adapters must do something, or nothing above would notice that they are missing.
    for (const task of ["flat", "sketch"]) expect(psnr(pictures.get(task)!, pictures.get("base")!)).toBeLessThan(25);
    expect(quantized.manifest?.component).toBe("unet");
    await quantized.dispose();
    await exact.dispose();
  });

  test("switching binds the same int8 buffers again, and opens nothing", async () => {
    let sessions = 0;
    const fed: Record<string, ort.Tensor>[] = [];
    const counting = {
      Tensor: ort.Tensor,
      InferenceSession: {
        create: async (...args: Parameters<typeof ort.InferenceSession.create>) => {
          sessions++;
          const session = await ort.InferenceSession.create(...args);
          const run = session.run.bind(session);
          session.run = (async (feeds: Record<string, ort.Tensor>) => {
            if ("sample" in feeds && "timestep" in feeds) fed.push({ ...feeds });
            return run(feeds);
          }) as typeof session.run;
          return session;
        },
      },
    };
    const pipeline = await openPipeline({ ort: counting as never, files: folderFiles(bundle) });
    const one = { ...request, steps: 1, guidance: 1 };
    // The autoencoder's encoder is opened when first needed.
    await pipeline.generate(one);
    const opened = sessions;
    fed.length = 0;
    const selections: Selection[] = ["flat", "base", { flat: 0.5 }, { flat: 1, sketch: 1 }, "flat"];
    for (const selection of selections) {
      await pipeline.use(selection);
      await pipeline.generate(one);
    }
    expect(sessions).toBe(opened);
    const input = Object.keys(fed[0]).find((name) => name.endsWith("lora_A"))!;
    expect(fed[0][input].type).toBe("int8");
    expect(fed[2][input]).toBe(fed[0][input]);
    expect(fed.at(-1)![input]).toBe(fed[0][input]);
    // Ranks 16 and 8 side by side.
    expect(fed[3][input].dims.reduce((a, b) => a * b, 1)).toBe(1.5 * fed[0][input].data.length);
    await pipeline.dispose();
  });

  test("an .onnx_adapter holds all adapter inputs: with it the graph runs by itself", async () => {
    const { parameters } = readOnnxAdapter(readFileSync(join(bundle, "adapters/flat.onnx_adapter")), "flat");
    // What programs without @quad-lora/runtime have to set on x64 processors without VNNI.
    const extra = { session: { x64quantprecision: "1" } };
    const session = await ort.InferenceSession.create(join(bundle, "unet/model.onnx"), { extra });
    const feeds: Record<string, ort.Tensor> = {};
    for (const { name, dataType, dims, data } of parameters) {
      const own = data.slice().buffer;
      const values = dataType === "int8" ? new Int8Array(own) : new Float32Array(own);
      feeds[name] = new ort.Tensor(dataType as "int8", values as Int8Array, dims);
    }
    const inputs = {
      sample: {
        type: "float32" as const,
        dims: [2, 9, 16, 16],
        data: new Float32Array(4608).map((_, i) => Math.sin(i)),
      },
      timestep: { type: "int64" as const, dims: [], data: BigInt64Array.of(501n) },
      encoder_hidden_states: {
        type: "float32" as const,
        dims: [2, 16, 96],
        data: new Float32Array(3072).map((_, i) => Math.cos(i)),
      },
    };
    const given = Object.fromEntries(
      Object.entries(inputs).map(([name, { type, data, dims }]) => [
        name,
        new ort.Tensor(type as "float32", data as never, dims),
      ]),
    );
    const direct = Object.values(await session.run({ ...given, ...feeds }))[0].data;
    const pipeline = await openFolder(bundle);
    await pipeline.use("flat");
    expect(Object.values(await pipeline.runComponent("unet", inputs))[0].data).toEqual(direct);
    await pipeline.dispose();
    await session.release();
  });

  test("encodings in every AIMET version say what the profile says", async () => {
    const { points, slots } = json(profile);
    const layers = Object.entries<Parameters<typeof pointEncoding>[0]>(points);
    expect(layers.length).toBeGreaterThan(100);
    for (const version of ["0.6.1", "1.0.0", "2.0.0"] as const) {
      const file = readAimet(await bundleEncodings(bundle, version), version);
      expect(file.version).toBe(version);
      const slot = json(join(bundle, "slots.json")).components.unet.slots[0];
      const encoding = file.activations.get(slot.inputA)!;
      expect(encoding).toMatchObject({ bits: 8, signed: true, symmetric: true });
      expect(encoding.scale[0]).toBe(Math.fround(slots[slot.name].a));
      const scales = new Set([...file.activations.values()].map(({ scale }) => scale[0]));
      // On cpu every point is a layer's input: the tensor it reads has that encoding.
      const found = layers.filter(([, point]) => scales.has(Math.fround(point.scale)));
      expect(found.length).toBe(layers.length);
      if (version !== "2.0.0") expect(file.parameters.size).toBeGreaterThan(80);
    }
  });

  test("an AIMET file can be read back into a profile", async () => {
    const own = await readProfile(profile);
    const file = join(folder, "encodings.json");
    writeFileSync(file, await bundleEncodings(bundle, "1.0.0"));
    const other = structuredClone(own);
    for (const point of Object.values(other.points)) point.scale *= 2;
    for (const scales of Object.values(other.slots)) [scales.a, scales.b] = [3 * scales.a, scales.b / 3];
    const { profile: read, taken, skipped } = await importEncodings(exposed, other, file);
    expect(skipped).toEqual([]);
    expect(taken).toBe(Object.keys(own.points).length + 2 * Object.keys(own.slots).length);
    expect(read).toEqual(own);
    for (const point of Object.values(other.points)) point.bits = 16;
    const kept = await importEncodings(exposed, other, file);
    expect(kept.profile.points).toEqual(other.points);
    expect(kept.skipped[0].reason).toBe("has 8 bits where the profile has 16");
  });

  test("shows itself, and its storage against merged models", async () => {
    const shown = await showBundle(bundle);
    expect(shown.adapters.map(({ name }) => name)).toEqual(["flat", "sketch"]);
    expect(shown.profile.strategy).toEqual(result.profile.strategy);
    const { total, ...parts } = shown.sizes;
    expect(total).toBe(Object.values(parts).reduce((a, b) => a + b, 0));
    expect(parts.unet).toBe(graphBytes(bundle) + statSync(join(bundle, "unet/config.json")).size);
    const sizes = await storageSizes(bundle, exposed);
    expect(sizes.fullPrecisionGraph).toBe(graphBytes(exposed));
    const rows = storageTable(sizes);
    expect(rows.map(({ tasks }) => tasks)).toEqual([1, 2, 5, 10]);
    for (const { tasks, mergedFullPrecision, mergedQuantized, bundle: bytes } of rows) {
      expect(mergedFullPrecision).toBe(sizes.shared + tasks * sizes.fullPrecisionGraph);
      expect(mergedQuantized).toBe(sizes.shared + tasks * sizes.quantizedGraph);
      expect(bytes).toBe(sizes.shared + sizes.quantizedGraph + tasks * sizes.adapter);
    }
    // Adapters of the paper's relative size, nothing shared: more than five times smaller at ten tasks.
    const paper = storageTable({ fullPrecisionGraph: 4000, quantizedGraph: 1000, adapter: 85, shared: 0 }, [10])[0];
    expect(paper.mergedQuantized / paper.bundle).toBeCloseTo(10_000 / 1850, 10);
  });
});

describe("signatures", () => {
  test("a signed bundle opens with its key, tells a change of manifest or record, and wants new adapters signed", async () => {
    const copy = copyOfBundle();
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const key = join(copy, "..", "private.pem");
    writeFileSync(key, privateKey.export({ type: "pkcs8", format: "pem" }));
    const trustedKeys = [publicKey.export({ type: "spki", format: "pem" }).toString()];
    await expect(openFolder(copy, { trustedKeys })).rejects.toThrow(/manifest\.json: is not signed/);
    const { signed, publicKey: shown } = await signBundle(copy, key);
    expect(signed).toEqual(["manifest.json", "adapters/flat.json", "adapters/sketch.json"]);
    await verifyBundle(copy, { trustedKeys: [shown] });
    const pipeline = await openFolder(copy, { trustedKeys });
    await pipeline.use("flat");
    await pipeline.dispose();
    const record = join(copy, "adapters", "flat.json");
    writeFileSync(record, readFileSync(record, "utf8").replace('"source"', '"note": "x", "source"'));
    await expect(openFolder(copy, { trustedKeys })).rejects.toThrow(/flat\.json: was changed after it was signed/);
    await expect(signBundle(copy, key)).rejects.toThrow(/flat\.json: recordHash/);
    rmSync(copy, { recursive: true });
  });
});

describe("verification", () => {
  const reading = (root: string) =>
    fetchFiles("http://bundle", {
      index: Object.keys(snapshot(root)),
      fetch: async (url) => {
        const path = join(root, decodeURIComponent(url.slice("http://bundle/".length)));
        return new Response(new Uint8Array(await readFile(path)));
      },
    });

  test.each(["unet/model.onnx", "unet/model.onnx_data", "profile.json", "tokenizer/tokenizer.json"])(
    "a changed %s is refused by name",
    async (path) => {
      const copy = copyOfBundle();
      flipByte(join(copy, path));
      const opening = openFolder(copy);
      await expect(opening).rejects.toThrow(InputError);
      await expect(opening).rejects.toThrow(/^[^\n]+expected SHA-256 \w{64}, got SHA-256 \w{64}[^\n]+$/);
      await expect(opening).rejects.toThrow(join(copy, path));
      await expect(verifyBundle(copy)).rejects.toThrow(join(copy, path));
      rmSync(copy, { recursive: true });
    },
  );

  test("a file that is cut or gone, and a changed adapter, which is read when it is used", async () => {
    const copy = copyOfBundle();
    flipByte(join(copy, "adapters/flat.safetensors"));
    const pipeline = await openFolder(copy);
    await pipeline.use("sketch");
    await expect(pipeline.use("flat")).rejects.toThrow(/flat\.safetensors: is not the file .*expected SHA-256/);
    await pipeline.dispose();
    const trusting = await openFolder(copy, { verify: false });
    await trusting.use("flat");
    await trusting.dispose();
    writeFileSync(join(copy, "scheduler/scheduler_config.json"), "{}");
    await expect(openFolder(copy)).rejects.toThrow(/scheduler_config.json: .*expected \d+ bytes, got 2 bytes/);
    rmSync(join(copy, "scheduler/scheduler_config.json"));
    await expect(openFolder(copy)).rejects.toThrow(/scheduler_config.json: is missing/);
  });

  test("over HTTP the bytes are compared as they arrive", async () => {
    const copy = copyOfBundle();
    const open = () => openPipeline({ ort: ort as never, files: reading(copy) });
    const pipeline = await open();
    const local = await openFolder(bundle);
    expect(await draw(pipeline, "flat")).toEqual(await draw(local, "flat"));
    await local.dispose();
    await pipeline.dispose();
    flipByte(join(copy, "unet/model.onnx"));
    await expect(open()).rejects.toThrow(/http:\/\/bundle\/unet\/model.onnx: .*expected SHA-256/);
  });

  test("an adapter of another bundle is refused by name, verified or not", async () => {
    const copy = copyOfBundle();
    const path = join(copy, "adapters/flat.safetensors");
    const { tensors, metadata } = parseSafetensors(readFileSync(path), "flat");
    const inputs: SafetensorsInput[] = [...tensors.values()].map(({ bytes, ...tensor }) => ({
      ...tensor,
      data: bytes,
    }));
    writeFileSync(path, serializeSafetensors(inputs, { ...metadata, "quad.graph": "0".repeat(64) }));
    const pipeline = await openFolder(copy, { verify: false });
    await expect(pipeline.use("flat")).rejects.toThrow(/flat\.safetensors: quad\.graph: .*made for another graph/);
    await pipeline.dispose();
  });
});

describe("adding later", () => {
  /** The erase adapter on the layers that the bundle has slots for. */
  const lateAdapter = (pattern = fewLayers) => {
    const path = join(folder, `late ${pattern.source.length}.safetensors`);
    writeFileSync(path, serializeSafetensors(adapterTensors("erase.safetensors", pattern)));
    return path;
  };

  test("leaves the bundle as it is, and says how well the new adapter fits", async () => {
    const copy = copyOfBundle();
    const before = snapshot(copy, true);
    const record = await addToBundle({
      bundle: copy,
      adapter: lateAdapter(),
      name: "late",
      task: { steps: 2 },
      against: pocketFolder,
      cases: [request],
    });
    const after = snapshot(copy, true);
    const added = Object.keys(after).filter((path) => !(path in before));
    expect(added).toEqual(["json", "onnx_adapter", "safetensors"].map((extension) => `adapters/late.${extension}`));
    for (const [path, state] of Object.entries(before)) expect(after[path]).toBe(state);
    expect(record.fit.measured!.sqnr).toBeGreaterThan(25);
    expect(record.fit.measured!.qss).toBeGreaterThan(0);
    expect(record.fit.clipped).toBeLessThan(0.05);
    await verifyBundle(copy);

    // Beside an exposed folder that has the slots, the same is measured.
    const again = copyOfBundle();
    const beside = { bundle: again, adapter: lateAdapter(), name: "late", task: { steps: 2 }, cases: [request] };
    const other = await addToBundle({ ...beside, against: exposed });
    expect(other.fit.measured!.sqnr).toBeCloseTo(record.fit.measured!.sqnr!, 2);
    expect(snapshot(again)["adapters/late.safetensors"]).toBe(snapshot(copy)["adapters/late.safetensors"]);

    const pipeline = await openFolder(copy);
    expect(pipeline.tasks).toContain("late");
    expect(pipeline.task("late")).toMatchObject({ adapter: "late", steps: 2 });
    const picture = await draw(pipeline, "late");
    expect(psnr(picture, await draw(pipeline, "base"))).toBeLessThan(40);
    await pipeline.dispose();
    await expect(addToBundle(beside)).rejects.toThrow(/late.json: the bundle has an adapter of this name/);
  });

  test("layers without a slot are refused, unless a part is asked for", async () => {
    const copy = copyOfBundle();
    const options = { bundle: copy, adapter: lateAdapter(/mid_block/), name: "partly" };
    await expect(addToBundle(options)).rejects.toThrow(/\d+ of the adapter's \d+ keys have no slot.*--partial/);
    expect(snapshot(copy)).toEqual(snapshot(bundle));
    const record = await addToBundle({ ...options, partial: true });
    expect(record.withoutSlot.length).toBeGreaterThan(0);
    expect(record.fit.measured).toBeUndefined();
    expect(json(join(copy, "adapters/partly.json"))).toMatchObject(record);
  });

  test("a rank beyond a fixed one, a strange name, and a changed profile are refused", async () => {
    const copy = copyOfBundle();
    const options = { bundle: copy, adapter: lateAdapter(), name: "late" };
    await expect(addToBundle({ ...options, name: "../late" })).rejects.toThrow(/is not a name for an adapter/);
    const slotsPath = join(copy, "slots.json");
    writeFileSync(slotsPath, JSON.stringify({ ...json(slotsPath), rank: { kind: "fixed", rank: 3 } }));
    await expect(addToBundle(options)).rejects.toThrow(/slots.json: is not the file that the manifest describes/);
    const manifest: BundleManifest = json(join(copy, "manifest.json"));
    const text = readFileSync(slotsPath);
    manifest.files["slots.json"] = { sha256: sha256(text), bytes: text.length };
    writeFileSync(join(copy, "manifest.json"), JSON.stringify(manifest));
    await expect(addToBundle(options)).rejects.toThrow(/rank exceeds that of the bundle's graph .*at most 3/);
    expect(existsSync(join(copy, "adapters/late.safetensors"))).toBe(false);
  });
});

describe("building again", () => {
  const stagesOf = async () => Object.entries((await build(config)).stages).filter(([, { reused }]) => !reused);

  test("skips what is unchanged, keeps what was added, and restores what is gone", async () => {
    const first = snapshot(bundle);
    await addToBundle({
      bundle,
      adapter: join(folder, "flat.safetensors"),
      name: "again",
    });
    const before = snapshot(bundle, true);
    expect(await stagesOf()).toEqual([]);
    expect(snapshot(bundle, true)).toEqual(before);

    // A changed bundle is written again, byte by byte the same, with what had been added.
    const states = async () => {
      const { steps, open } = await planOfBuild(config);
      expect(open).toEqual([]);
      return steps.filter(({ done }) => !done).map(({ label }) => label);
    };
    expect(await states()).toEqual([]);
    flipByte(join(bundle, "unet/model.onnx_data"));
    expect(await states()).toEqual(["compile"]);
    expect((await stagesOf()).map(([name]) => name)).toEqual(["compile"]);
    const withAdded = Object.fromEntries(Object.entries(before).map(([path, state]) => [path, state.split(" ")[0]]));
    expect(snapshot(bundle)).toEqual(withAdded);
    for (const [path, state] of Object.entries(first)) expect(withAdded[path]).toBe(state);
  });

  test("with another profile, what was added is set aside and told; what is not the bundle's own is not overwritten", async () => {
    const copy = copyOfBundle();
    await addToBundle({ bundle: copy, adapter: join(folder, "flat.safetensors"), name: "other" });
    const added = Object.entries(snapshot(copy)).filter(([path]) => path.startsWith("adapters/other."));
    // The same profile in other bytes.
    const other = join(folder, "spaced-profile.json");
    writeFileSync(other, JSON.stringify(json(profile), null, 4));
    const options = { exposed, profile: other, out: copy, target: "cpu" as const };
    const notes = join(copy, "notes.txt");
    writeFileSync(notes, "mine");
    await expect(compileBundle(options)).rejects.toThrow(/would be lost .*got notes\.txt/);
    rmSync(notes);
    expect((await compileBundle(options)).lost).toContain("other");
    expect(existsSync(join(copy, "adapters/other.json"))).toBe(false);
    const aside = snapshot(`${copy}.set-aside`);
    for (const [path, hash] of added)
      expect(Object.entries(aside)).toContainEqual([expect.stringContaining(path), hash]);
  });

  test("another graph's profile, another target and foreign folders are refused before anything is written", async () => {
    const out = join(folder, "elsewhere");
    const other = join(folder, "other-profile.json");
    writeFileSync(other, JSON.stringify({ ...json(profile), graph: "0".repeat(64) }));
    const options = { exposed, profile, out, target: "cpu" as const };
    await expect(compileBundle({ ...options, profile: other })).rejects.toThrow(/graph: .*belongs to another graph/);
    await expect(compileBundle({ ...options, target: "npu" })).rejects.toThrow(
      /another target .*expected npu, got cpu/,
    );
    await expect(compileBundle({ ...options, out: pocketFolder })).rejects.toThrow(/exists and is not a bundle/);
    const controller = new AbortController();
    const stopped = compileBundle({
      ...options,
      signal: controller.signal,
      onProgress: () => controller.abort(new Error("stop")),
    });
    await expect(stopped).rejects.toThrow("stop");
    expect(readdirSync(folder).filter((name) => name.startsWith("elsewhere") || name.startsWith("."))).toEqual([]);
  });
});
