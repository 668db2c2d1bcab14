import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { InputError, parseSafetensors } from "@quad-lora/base";
import { checkModel, loadModel, type Model } from "@quad-lora/onnx";
import { expose, findLayers, importAdapter, openFolder, toModule } from "quad-lora";
import sharp from "sharp";
import { beforeAll, describe, expect, test } from "vitest";
import { graphIdentity } from "../packages/quad/src/model/graph-files.ts";
import { denoiserSlots } from "../packages/quad/src/model/slots.ts";
import { prepareGraph } from "../packages/quad/src/quantizable/prepare-graph.ts";
import { writeProfile } from "../packages/quad/src/records/profile.ts";
import { policySchema } from "../packages/quad/src/settings/policy.ts";
import { buildSimulation } from "../packages/quad/src/simulate/simulation-graph.ts";
import { buildAdapterGraph } from "../packages/quad/src/train/adapter-graph.ts";
import { type TrainAdapterOptions, trainAdapter } from "../packages/quad/src/train/train-adapter.ts";
import { trainWeights } from "../packages/quad/src/train/train-weights.ts";
import { findWeights, freshWeights } from "../packages/quad/src/train/weights-graph.ts";
import { temporaryFolder } from "./helpers/models.ts";
import { loadSd15Graph } from "./helpers/sd15.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const quad = join(root, "packages/quad/bin/quad.js");
const pocket = join(root, "models/pocket");
const folder = temporaryFolder();
const pairs = join(folder, "pairs");
const at = (name: string) => join(folder, name);

/** A run of the command line and of the function with the same settings. */
const settings = { steps: 24, batch: 2, rank: 2, warmup: 2, seed: 5, learningRate: 0.005, size: [32, 32] } as const;
const flags = [
  "--steps",
  "24",
  "--batch",
  "2",
  "--rank",
  "2",
  "--warmup",
  "2",
  "--seed",
  "5",
  "--learning-rate",
  "0.005",
];
const commonFlags = [...flags, "--size", "32x32", "--checkpoint-every", "1", "--pairs", pairs];

beforeAll(async () => {
  mkdirSync(pairs);
  const colours = ["#d33", "#3b3", "#33d", "#dd3"];
  for (const [index, colour] of colours.entries()) {
    const disc = `<svg width="32" height="32"><rect width="32" height="32" fill="#fff"/><circle cx="16" cy="16" r="${8 + index}" fill="${colour}"/></svg>`;
    const picture = sharp(Buffer.from(disc)).removeAlpha();
    await picture.clone().toFile(join(pairs, `${index}.input.png`));
    await picture
      .clone()
      .negate()
      .toFile(join(pairs, `${index}.target.png`));
    writeFileSync(join(pairs, `${index}.txt`), "red apple food fruit");
  }
  await expose(pocket, { out: at("exposed"), adapters: {}, slots: /up_blocks.*attentions\.0/ });
});

const everyGroup = "attention,feed-forward,convolutions";

/** The file has the keys and shapes of one that PyTorch's tools wrote for the same layers, the rank aside. */
function expectLayout(path: string, reference: string, referenceRank: number): void {
  expect(layoutOf(path, settings.rank)).toEqual(layoutOf(join(pocket, "adapters", reference), referenceRank));
}

function layoutOf(path: string, rank: number): [key: string, shape: string][] {
  const { tensors } = parseSafetensors(readFileSync(path), path);
  const rankAxis = (key: string) => (/(lora_down|lora_A)\./.test(key) ? 0 : 1);
  const layout = [...tensors].map(([key, { shape }]): [string, string] => {
    const dims = shape.map((dim, axis) => (axis === rankAxis(key) && dim === rank ? "r" : String(dim)));
    return [key, dims.join("x")];
  });
  return layout.sort(([a], [b]) => (a < b ? -1 : 1));
}

const pocketModules = () =>
  findLayers(loadModel(join(pocket, "unet/model.onnx"))).layers.map((l) => toModule("unet", l));

describe("a LoRA", () => {
  test("learns, and is a kohya file key for key that reads back", async () => {
    const { curve, best, layers, loss } = await trainAdapter(pocket, {
      ...settings,
      ...{ pairs, out: at("kohya.safetensors"), layers: everyGroup, dtype: "F32", averageDecay: 0.5 },
      ...{ validation: pairs, validateEvery: 8 },
    });
    expect(curve.losses).toHaveLength(settings.steps);
    expect(loss).toBeLessThan(curve.losses[0]);
    expect(best!.value).toBeLessThan(0.8 * curve.evaluations[0].value);
    expect(existsSync(at("kohya.safetensors.checkpoint"))).toBe(false);

    expectLayout(at("kohya.safetensors"), "flat.safetensors", 16);
    const { report, layers: read } = await importAdapter(at("kohya.safetensors"), pocketModules(), { name: "trained" });
    expect(report.unmatched).toEqual([]);
    expect(report.mismatched).toEqual([]);
    expect(read).toHaveLength(layers);
    // B starts at zero: training has moved every one.
    expect(read.every(({ up }) => up.some((value) => value !== 0))).toBe(true);
  });

  test("is a PEFT folder key for key", async () => {
    const options = { ...settings, pairs, steps: 1, warmup: 1, layers: everyGroup, dtype: "F32" } as const;
    await trainAdapter(pocket, { ...options, out: at("peft"), format: "peft" });
    expectLayout(at("peft/adapter_model.safetensors"), "sketch/adapter_model.safetensors", 8);
    const { report, layers } = await importAdapter(at("peft"), pocketModules(), { name: "trained" });
    expect(report.unmatched).toEqual([]);
    expect(layers).toHaveLength(120);
    expect(layers.every(({ rank }) => rank === settings.rank)).toBe(true);
  });

  test("draws, once exposed, another picture than the base", async () => {
    const exposed = at("with-adapter");
    await expose(pocket, { out: exposed, adapters: { trained: at("kohya.safetensors") } });
    const pipeline = await openFolder(exposed, { threads: 2 });
    const request = { prompt: "red apple food fruit", seed: 1, steps: 2 };
    const base = await pipeline.generate(request);
    await pipeline.use({ trained: 1 });
    const trained = await pipeline.generate(request);
    expect(trained.latents.every(Number.isFinite)).toBe(true);
    expect(trained.data).not.toEqual(base.data);
    await pipeline.dispose();
  });

  test("learns on the quantized base, and fits the exposed model", async () => {
    const exposed = at("exposed");
    const { component, slots } = await denoiserSlots(exposed);
    const graph = await graphIdentity(exposed, component);
    const model = loadModel(join(exposed, "unet/model.onnx"));
    const prepared = await prepareGraph(model, slots, { batch: 2, height: 8, width: 8, tokens: 16 });
    const policy = policySchema.parse({ weightMethod: "min-max" });
    const { points } = buildSimulation(prepared, slots, { placement: "cpu", ...policy });
    const file = at("profile.json");
    /** One encoding for all values, about zero. */
    const withEncoding = (bits: 8 | 16, scale: number): Promise<void> => {
      const encoding = { bits, scale, zeroPoint: 2 ** (bits - 1) };
      return writeProfile(file, {
        ...{ format: "quad-profile", version: 1, component, graph, placement: "cpu", rank: 2, policy },
        shape: { batch: 2, height: 8, width: 8, tokens: 16 },
        strategy: { kind: "unified", anchor: null, reason: "for this test" },
        ...{ scores: {}, shared: {}, narrowLayers: [], layerSensitivity: {}, slots: {} },
        points: Object.fromEntries(points.map(({ name }) => [name, encoding])),
      });
    };
    const train = (options: Partial<TrainAdapterOptions> & { out: string }) =>
      trainAdapter(exposed, { ...settings, pairs, layers: "up_blocks.*attentions\\.0", profile: file, ...options });
    const out = at("quantized.safetensors");
    await withEncoding(8, 0.5);
    const { curve, best, layers } = await train({
      out,
      validation: pairs,
      validateEvery: 8,
      averageDecay: 0.5,
    });
    expect(best!.value).toBeLessThan(0.95 * curve.evaluations[0].value);
    const { report, layers: read } = await importAdapter(out, pocketModules(), { name: "quantized" });
    expect(report.unmatched).toEqual([]);
    expect(read).toHaveLength(layers);

    // With fine steps the quantized base is nearly the base, with coarse ones it is not.
    const first = async (result: Promise<{ curve: { losses: number[] } }>) => (await result).curve.losses[0];
    const once = { steps: 1, warmup: 1, out: at("once.safetensors") };
    const float = await first(
      trainAdapter(pocket, { ...settings, pairs, layers: "up_blocks.*attentions\\.0", ...once }),
    );
    await withEncoding(16, 2 ** -9);
    const wide = await first(train(once));
    expect(Math.abs(wide - float)).toBeLessThan(0.3 * Math.abs(curve.losses[0] - float));
    await expect(trainAdapter(exposed, { ...settings, pairs, out })).rejects.toThrow("has adapter inputs already");
    await expect(trainAdapter(pocket, { ...settings, pairs, out, profile: file })).rejects.toThrow("no adapter inputs");
  });

  describe("of the same settings", () => {
    const choice = { layers: "^conv_out$" };
    let whole: Buffer;
    beforeAll(async () => {
      await trainAdapter(pocket, { ...settings, ...choice, pairs, out: at("whole.safetensors") });
      whole = readFileSync(at("whole.safetensors"));
    });
    const command = (out: string) => ["train", pocket, ...commonFlags, "--layers", choice.layers, "--out", at(out)];

    test("is the same bytes, in another process and with checkpoints too", async () => {
      expect(await ended(start(command("again.safetensors")))).toEqual({ code: 0, signal: null });
      expect(readFileSync(at("again.safetensors")).equals(whole)).toBe(true);
    });

    // Where it happens is random, so that every run of the tests tries another place.
    const anyStep = () => 1 + Math.floor(Math.random() * (settings.steps - 4));
    test.each([
      { name: "killed", signal: "SIGKILL", step: anyStep() },
      { name: "interrupted by Ctrl-C", signal: "SIGINT", step: anyStep() },
    ] as const)("is the same bytes after being $name behind step $step", async ({ signal, step }) => {
      const out = `${signal}.safetensors`;
      const child = start(command(out));
      const end = ended(child);
      await stepsDone(at(`${signal}.loss.json`), step);
      child.kill(signal);
      expect(await end).toEqual(signal === "SIGINT" ? { code: 130, signal: null } : { code: null, signal });
      expect(existsSync(at(out))).toBe(false);
      expect(existsSync(at(`${out}.checkpoint`))).toBe(true);

      const { resumedFrom } = await trainAdapter(pocket, { ...settings, ...choice, pairs, out: at(out) });
      expect(resumedFrom).toBeGreaterThanOrEqual(step);
      expect(resumedFrom).toBeLessThan(settings.steps);
      expect(readFileSync(at(out)).equals(whole)).toBe(true);
      expect(
        readdirSync(folder)
          .filter((name) => name.includes(signal))
          .sort(),
      ).toEqual([`${signal}.loss.json`, out]);
    });
  });
});

describe("all weights", () => {
  const filesOf = (path: string) =>
    (
      readdirSync(path, { recursive: true, withFileTypes: true }) as {
        isFile(): boolean;
        parentPath: string;
        name: string;
      }[]
    )
      .filter((entry) => entry.isFile())
      .map(({ parentPath, name }) => join(parentPath, name).slice(path.length + 1))
      .sort();
  const hash = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
  const changed = (path: string) => {
    const before = weightsByName(loadModel(join(pocket, "unet/model.onnx")));
    const after = weightsByName(loadModel(join(path, "unet/model.onnx")));
    expect([...after.keys()]).toEqual([...before.keys()]);
    return [...after].filter(([name, bytes]) => !Buffer.from(bytes).equals(before.get(name)!)).map(([name]) => name);
  };

  test.each([
    { name: "Stable Diffusion 1.5", load: loadSd15Graph },
    { name: "pocket", load: () => loadModel(join(pocket, "unet/model.onnx")) },
  ])("of $name are all float constants of the file but single numbers", ({ load }) => {
    const model = load();
    const found = findWeights(model).map(({ value }) => value);
    const constants = [...model.graph.initializers].filter(
      ({ initializer }) => initializer!.dataType === "float32" && initializer!.elementCount > 1,
    );
    expect(found).toHaveLength(new Set(found).size);
    expect(new Set(found)).toEqual(new Set(constants));
  });

  test("are trained into a folder that runs; other components stay as they are", async () => {
    const out = at("full");
    const { curve, best } = await trainWeights(pocket, {
      ...settings,
      ...{ pairs, out, steps: 5, learningRate: 0.001, validation: pairs, validateEvery: 1, averageDecay: 0 },
    });
    expect(best!.value).toBeLessThan(0.8 * curve.evaluations[0].value);
    const own = filesOf(pocket).filter((name) => !/^(adapters|samples)\/|^quad\.config/.test(name));
    expect(filesOf(out)).toEqual(own);
    const differing = own.filter((name) => hash(join(out, name)) !== hash(join(pocket, name)));
    expect(differing).toEqual(["unet/model.onnx"]);
    checkModel(loadModel(join(out, "unet/model.onnx")));
    expect(changed(out).length).toBeGreaterThan(300);

    const pictures: Uint8Array[] = [];
    for (const path of [pocket, out]) {
      const pipeline = await openFolder(path, { threads: 2 });
      const { data, latents } = await pipeline.generate({ prompt: "red apple food fruit", seed: 1, steps: 2 });
      expect(latents.every(Number.isFinite)).toBe(true);
      pictures.push(data);
      await pipeline.dispose();
    }
    expect(pictures[1]).not.toEqual(pictures[0]);
    const again = trainWeights(pocket, { ...settings, pairs, out });
    await expect(again).rejects.toThrow(`${out}: exists already`);
  });

  test("of chosen layers only: the rest keeps its bytes", async () => {
    const out = at("some");
    await trainWeights(pocket, { ...settings, pairs, out, steps: 1, warmup: 1, layers: "^conv_out$" });
    expect(changed(out)).toEqual(["conv_out.weight", "conv_out.bias"]);
  });

  test("from scratch: weights within their bound, scales one, biases zero", () => {
    const weights = findWeights(loadModel(join(pocket, "unet/model.onnx")));
    const values = freshWeights(weights, 3);
    const valuesOf = (name: string) => {
      const index = weights.findIndex(({ value }) => value.name === name);
      const before = weights.slice(0, index).reduce((sum, { value }) => sum + value.initializer!.elementCount, 0);
      return values.subarray(before, before + weights[index].value.initializer!.elementCount);
    };
    const variance = (numbers: Float32Array) => numbers.reduce((sum, value) => sum + value * value, 0) / numbers.length;
    // A uniform distribution in +-bound has the variance bound^2 / 3, here 1 / (3 fan in).
    expect(variance(valuesOf("mid_block.resnets.0.conv1.weight")) * 3 * 144 * 9).toBeCloseTo(1, 1);
    expect(variance(valuesOf("time_embedding.linear_2.weight")) * 3 * 192).toBeCloseTo(1, 1);
    expect(variance(valuesOf("down_blocks.0.downsamplers.0.conv.bias"))).toBe(0);
    const norm = "down_blocks.1.attentions.0.transformer_blocks.0.norm1";
    expect(new Set(valuesOf(`${norm}.weight`))).toEqual(new Set([1]));
    expect(new Set(valuesOf(`${norm}.bias`))).toEqual(new Set([0]));
  });
});

describe("what cannot be trained on is refused in one line, and nothing is written", () => {
  const cases: [string, () => { model?: string; options?: object }, RegExp][] = [
    ["no folder", () => ({ options: { pairs: at("missing") } }), /missing: there is no such folder/],
    ["an empty folder", () => ({ options: { pairs: made("empty", {}) } }), /there is no picture to train on/],
    [
      "a picture without its partner",
      () => ({ options: { pairs: made("alone", { "a.input.png": "" }) } }),
      /"a" has no target/,
    ],
    [
      "a picture that is none",
      () => ({ options: { pairs: made("text", { "a.png": "text", "a.txt": "a" }) } }),
      /a\.png: /,
    ],
    ["a size that does not fit", () => ({ options: { size: [30, 32] } }), /this size does not fit the model/],
    ["layers that are not there", () => ({ options: { layers: "nothing" } }), /no layer of the model matches/],
    ["an exposed model", () => ({ model: at("exposed") }), /the model has adapter inputs already/],
    ["no model", () => ({ model: pairs }), /there is no model_index\.json/],
  ];
  test.each(cases)("%s", async (_name, given, message) => {
    const { model = pocket, options = {} } = given();
    const before = readdirSync(folder);
    for (const train of [trainAdapter, trainWeights]) {
      const error = await train(model, { ...settings, pairs, out: at("refused"), ...options }).catch(
        (reason) => reason,
      );
      expect(error).toBeInstanceOf(InputError);
      expect(error.message).toMatch(message);
      expect(error.message).not.toContain("\n");
    }
    expect(readdirSync(folder)).toEqual(before);
  });

  test("more than the memory holds", async () => {
    const message =
      /this training does not fit into the machine's memory .*expected at most 0\.00100 GB, got at least 0\.\d+ GB for/;
    await expect(graphWithin(1e6)).rejects.toThrow(message);
  });
});

/** The training graph of a few layers, allowed this many bytes. */
function graphWithin(memoryLimit: number) {
  const model = loadModel(join(pocket, "unet/model.onnx"));
  const layers = findLayers(model).layers.filter(({ name }) => /to_q$/.test(name));
  const sizes = { rank: 8, scale: 1, batch: 4, height: 16, width: 16, tokens: 16 };
  return buildAdapterGraph(model, layers, { ...sizes, clipNorm: 1, weightDecay: 0, segments: "auto", memoryLimit });
}

test("recomputation is chosen where memory is short", async () => {
  const free = await graphWithin(1e9);
  expect(free.segments).toBe(1);
  const limit = 0.9 * free.training.peakBytes;
  const short = await graphWithin(limit);
  expect(short.segments).toBeGreaterThan(1);
  expect(short.training.peakBytes).toBeLessThan(limit);
});

function made(name: string, files: Record<string, string>): string {
  const path = join(folder, "folders", name);
  mkdirSync(path, { recursive: true });
  for (const [file, text] of Object.entries(files)) writeFileSync(join(path, file), text);
  return path;
}

function weightsByName(model: Model): Map<string, Uint8Array> {
  return new Map([...model.graph.initializers].map(({ name, initializer }) => [name, initializer!.bytes()]));
}

function start(args: readonly string[]): ChildProcess {
  return spawn(process.execPath, [quad, ...args], { cwd: dirname(pairs), stdio: "ignore" });
}

function ended(child: ChildProcess): Promise<{ code: number | null; signal: string | null }> {
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal }));
  });
}

/** Waits until the curve, which is written with every checkpoint, has this many steps. */
async function stepsDone(curvePath: string, steps: number): Promise<void> {
  for (;;) {
    if (existsSync(curvePath) && JSON.parse(readFileSync(curvePath, "utf8")).losses.length >= steps) return;
    await sleep(2);
  }
}
