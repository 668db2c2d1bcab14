import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseSafetensors, serializeSafetensors, toFloat32 } from "@quad-lora/base";
import { Model, saveModel, Tensor } from "@quad-lora/onnx";
import { type EvaluateOptions, evaluate, planOfEvaluation, readEvaluation, readImage } from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { main } from "../packages/quad/src/cli/main.ts";
import { frechetDistance } from "../packages/quad/src/metrics/index.ts";
import { type BuildConfig, configSchema } from "../packages/quad/src/settings/config.ts";
import { exposedPocket, pocketFolder } from "./helpers/exposed-pocket.ts";
import { temporaryFolder } from "./helpers/models.ts";
import { meanDifference, psnr } from "./helpers/pictures.ts";

const folder = temporaryFolder();
const steps = 2;
const images = join(pocketFolder, "samples");

/** Two tasks: one that only draws, one with a picture and a mask. */
const config: BuildConfig = {
  ...configSchema.parse({
    model: pocketFolder,
    adapters: Object.fromEntries(
      ["flat.safetensors", "sketch", "erase.safetensors"].map((file) => [
        file.replace(".safetensors", ""),
        join(pocketFolder, "adapters", file),
      ]),
    ),
    out: join(folder, "unused"),
    work: join(folder, "work"),
    tasks: {
      flat: {
        steps,
        calibration: [{ prompt: "crab animal marine", seed: 1 }],
        evaluation: [
          { prompt: "penguin animal bird", seed: 11 },
          { prompt: "octopus animal marine", seed: 12 },
        ],
      },
      erase: {
        steps,
        guidance: 1,
        calibration: [{ image: join(images, "picture-crab.png"), mask: join(images, "mask.png") }],
        evaluation: [
          {
            image: join(images, "picture-penguin.png"),
            mask: join(images, "mask.png"),
            sourcePrompt: "penguin",
            seed: 13,
          },
        ],
      },
    },
  }),
};

let exposed: string;
/** The exposed folder with the adapter `flat` at half its strength: worse at one task, equal at the other. */
let weakened: string;

beforeAll(async () => {
  exposed = await exposedPocket();
  weakened = join(folder, "weakened");
  cpSync(exposed, weakened, { recursive: true });
  const path = join(weakened, "adapters/flat.safetensors");
  const { tensors, metadata } = parseSafetensors(readFileSync(path), path);
  const halved = [...tensors].map(([name, tensor]) => {
    const values = toFloat32(tensor, path);
    const data = name.endsWith("lora_B") ? values.map((value) => value / 2) : values;
    return { name, dtype: "F32" as const, shape: tensor.shape, data };
  });
  writeFileSync(path, serializeSafetensors(halved, metadata));
});

const settings = (out: string, options: Partial<EvaluateOptions> = {}): EvaluateOptions => ({
  ...{ against: pocketFolder, config, out: join(folder, out), simulate: false, ...options },
});
const run = (candidate: string, out: string, options: Partial<EvaluateOptions> = {}) =>
  evaluate(candidate, settings(out, options));

/** The same through the command line, with a report. */
async function commandLine(candidate: string, out: string) {
  const file = join(folder, "quad.config.json");
  // A configuration file has a task for every adapter.
  const sketch = { calibration: [{ image: join(images, "sketch-crab.png") }] };
  writeFileSync(file, JSON.stringify({ ...config, tasks: { ...config.tasks, sketch } }));
  const written: string[] = [];
  const original = process.stdout.write;
  process.stdout.write = ((text: string) => written.push(text) > 0) as typeof process.stdout.write;
  try {
    const report = [
      "--report",
      join(folder, "report.html"),
      "--no-simulate",
      "--json",
      "--task",
      "flat",
      "--task",
      "erase",
    ];
    await main(["eval", candidate, "--against", pocketFolder, "--config", file, "--out", join(folder, out), ...report]);
    expect(process.exitCode).toBe(0);
    return JSON.parse(written.join(""));
  } finally {
    process.stdout.write = original;
    process.exitCode = undefined;
  }
}

describe("pictures against full precision", { timeout: 300_000 }, () => {
  test("figures are those of the pictures on disk, and an adapter that is as it was is found equal", async () => {
    const planned = await planOfEvaluation(weakened, settings("weakened-evaluation"));
    expect(planned.steps[0]).toEqual({ label: "expose", done: false });
    expect(planned.open).toHaveLength(1);
    expect(existsSync(join(folder, "weakened-evaluation", "pictures"))).toBe(false);
    const evaluation = await run(weakened, "weakened-evaluation");
    const root = join(folder, "weakened-evaluation");
    expect(await readEvaluation(join(root, "evaluation.json"))).toEqual(evaluation);
    expect(evaluation.tasks.map(({ task, cases }) => [task, cases.length])).toEqual([
      ["flat", 2],
      ["erase", 1],
    ]);
    const [flat, erase] = evaluation.tasks;
    for (const [index, path] of flat.results.candidate.pictures.entries()) {
      const [exact, own] = await Promise.all(
        [flat.results.reference.pictures[index], path].map((file) => readImage(join(root, file))),
      );
      expect([own.width, own.height]).toEqual([64, 64]);
      const value = psnr(own.data, exact.data);
      expect(value).toBeLessThan(35);
      expect(flat.results.candidate.metrics[index].psnr).toBeCloseTo(value, 9);
    }
    const { metrics, frechetVae } = flat.results.candidate.summary!;
    const each = flat.results.candidate.metrics.map((entry) => entry.psnr);
    expect(metrics.psnr.mean).toBeCloseTo((each[0] + each[1]) / 2, 9);
    expect(metrics.psnr.worst).toBe(Math.min(...each));
    expect(frechetVae).toBeGreaterThan(0);
    expect(erase.results.candidate.metrics[0]).toEqual({ psnr: 100, ssim: 1, msssim: 1, ssimulacra2: 100 });
    // One picture has no distribution.
    expect(erase.results.candidate.summary!.frechetVae).toBeNull();
    expect(evaluation.msssimScales).toBe(3);
    expect(existsSync(join(root, erase.cases[0].input!))).toBe(true);
  });

  test("a second run draws nothing again; another adapter's task only", async () => {
    const root = join(folder, "weakened-evaluation");
    const times = () =>
      new Map(
        readdirSync(join(root, "pictures")).map((name) => [name, statSync(join(root, "pictures", name)).mtimeMs]),
      );
    const before = times();
    const result = await commandLine(weakened, "weakened-evaluation");
    expect(Object.keys(result.tasks)).toEqual(["flat", "erase"]);
    expect(result.tasks.erase.candidate.metrics.psnr).toEqual({ mean: 100, worst: 100 });
    expect(readFileSync(join(folder, "report.html"), "utf8")).toContain("1 of 2 tasks hold");
    const drawn = /-(reference|candidate)-/;
    for (const [name, time] of times()) if (drawn.test(name)) expect([name, time]).toEqual([name, before.get(name)]);
    const plan = () => planOfEvaluation(exposed, settings("weakened-evaluation"));
    const step = (label: string, done: number) => ({ label, done: done === 3, detail: `${done} of 3` });
    const others = [{ label: "expose", done: true }];
    expect(await plan()).toEqual({
      steps: [...others, step("draw: evaluated folder", 1), step("draw: full precision", 3)],
      open: [],
    });
    const again = await run(exposed, "weakened-evaluation");
    expect((await plan()).steps.every(({ done }) => done)).toBe(true);
    const changed = [...times()].filter(([name, time]) => drawn.test(name) && before.get(name) !== time);
    // The references and erase's picture stay; flat's two are new, and the old ones are gone.
    expect(changed.map(([name]) => name.replace(/-[0-9a-f]+\.png/, "")).sort()).toEqual([
      "flat-1-candidate",
      "flat-2-candidate",
    ]);
    expect(times().size).toBe(before.size);
    for (const { results } of again.tasks) {
      expect(results.candidate.metrics.every(({ psnr: value, ssim }) => value === 100 && ssim === 1)).toBe(true);
    }
    expect(again.tasks[0].results.candidate.summary!.frechetVae).toBeCloseTo(0, 6);
  });

  test("stopping keeps whole pictures, and the next run goes on", async () => {
    const controller = new AbortController();
    const stopped = run(weakened, "stopped", {
      signal: controller.signal,
      onProgress: (stage, done) => {
        if (stage.startsWith("drawing") && done === 1) controller.abort(new Error("enough"));
      },
    });
    await expect(stopped).rejects.toThrow("enough");
    const pictures = join(folder, "stopped/pictures");
    const kept = readdirSync(pictures);
    expect(kept.filter((name) => name.endsWith(".png"))).toHaveLength(1);
    expect(kept.filter((name) => name.includes("tmp"))).toEqual([]);
    expect(existsSync(join(folder, "stopped/evaluation.json"))).toBe(false);
    const time = statSync(join(pictures, kept[0])).mtimeMs;
    await run(weakened, "stopped", { tasks: ["flat"] });
    expect(statSync(join(pictures, kept[0])).mtimeMs).toBe(time);
  });
});

describe("what is said instead of guessed", () => {
  const without = (task: "flat" | "erase", change: object): BuildConfig => ({
    ...config,
    tasks: { [task]: { ...config.tasks[task], ...change } },
  });

  test("problems are told before anything is drawn", async () => {
    const fails = (options: Partial<EvaluateOptions>, message: RegExp) =>
      expect(run(exposed, "failed", options)).rejects.toThrow(message);
    await fails({ tasks: ["unknown"] }, /no task unknown/);
    await fails({ against: join(folder, "nowhere") }, /nowhere/);
    await fails({ networks: { lpips: join(folder, "none.onnx") } }, /none\.onnx/);
    await fails({ networks: { clipText: "text.onnx" } }, /--clip-image/);
    const noMask = [{ image: join(images, "picture-crab.png") }];
    await fails({ config: without("erase", { evaluation: noMask }), tasks: ["erase"] }, /"mask"/);
    const bundle = join(folder, "bundle");
    mkdirSync(bundle);
    writeFileSync(join(bundle, "manifest.json"), "{}");
    await fails({ against: bundle }, /quantized/);
    expect(existsSync(join(folder, "failed/evaluation.json"))).toBe(false);
  });
});

describe("networks of the user's", { timeout: 300_000 }, () => {
  /** A graph over float inputs, as a file. */
  async function network(
    name: string,
    inputs: Record<string, { type?: "float32" | "int64"; dims: (number | string)[] }>,
    build: (model: Model, values: ReturnType<Model["graph"]["addInput"]>[]) => ReturnType<Model["graph"]["apply"]>,
  ): Promise<string> {
    const model = new Model();
    model.opsets.set("", 17);
    const values = Object.entries(inputs).map(([input, { type = "float32", dims }]) =>
      model.graph.addInput(input, type, dims),
    );
    const output = build(model, values);
    output.name = "output";
    output.type = { kind: "tensor", dataType: "float32", shape: null };
    model.graph.outputs.push(output);
    const path = join(folder, `${name}.onnx`);
    await saveModel(model, path);
    return path;
  }

  test("give what they compute, in closed form", async () => {
    const picture = { dims: ["n", 3, "h", "w"] };
    const lpips = await network("lpips", { a: picture, b: picture }, ({ graph }, [a, b]) =>
      graph.apply("ReduceMean", [graph.apply("Abs", [graph.apply("Sub", [a, b])])], { attributes: { keepdims: 0 } }),
    );
    const means = ({ graph }: Model, [x]: Parameters<Model["graph"]["apply"]>[1] & {}) =>
      graph.apply("ReduceMean", [x as never], { attributes: { axes: [2, 3], keepdims: 0 } });
    const inception = await network("inception", { x: { dims: ["n", 3, 64, 64] } }, means as never);
    const clipImage = await network("clip-image", { x: { dims: [1, 3, 64, 64] } }, means as never);
    const clipText = await network("clip-text", { ids: { type: "int64", dims: [1, 16] } }, ({ graph }, [ids]) => {
      const bounds = [0, 3, 1].map((value, i) => graph.addInitializer(`bound${i}`, Tensor.int64([1], [value])));
      const [start, end, axis] = bounds;
      return graph.apply("Slice", [graph.apply("Cast", [ids], { attributes: { to: 1 } }), start, end, axis]);
    });
    const { tasks } = await run(weakened, "networks", {
      networks: {
        lpips,
        inception,
        inceptionRange: [0, 1],
        clipImage,
        clipText,
        clipTokenizer: join(pocketFolder, "tokenizer"),
      },
    });
    const [flat, erase] = tasks;
    const read = (paths: string[]) => Promise.all(paths.map((path) => readImage(join(folder, "networks", path))));
    const [exact, own] = [await read(flat.results.reference.pictures), await read(flat.results.candidate.pictures)];
    const features = (list: typeof exact) => list.map(({ data }) => [0, 1, 2].map((c) => channelMean(data, c)));
    for (const [index, { lpips: distance, clipSimilarity }] of flat.results.candidate.metrics.entries()) {
      const [a, b] = [own[index].data, exact[index].data];
      const difference = meanDifference(a, b) / 127.5;
      expect(distance).toBeCloseTo(difference, 5);
      const normalised = [own, exact].map((list) => clipNormalised(features(list)[index]));
      expect(clipSimilarity).toBeCloseTo(cosine(normalised[0], normalised[1]), 4);
    }
    const flattened = (list: typeof exact) => Float64Array.from(features(list).flat());
    expect(flat.results.candidate.summary!.fid).toBeCloseTo(frechetDistance(flattened(own), flattened(exact), 3), 5);
    expect(flat.results.candidate.metrics[0].clipScore).toBeGreaterThanOrEqual(0);
    expect(flat.results.candidate.metrics[0].clipDirection).toBeUndefined();
    expect(erase.results.candidate.metrics[0].clipDirection).toBeGreaterThanOrEqual(-1);
    expect(erase.results.candidate.metrics[0].lpips).toBe(0);
  });

  function channelMean(data: ArrayLike<number>, channel: number): number {
    let sum = 0;
    for (let i = channel; i < data.length; i += 3) sum += data[i];
    return sum / (data.length / 3) / 255;
  }

  const clipNormalised = (rgb: number[]) =>
    rgb.map((value, c) => (value - [0.48145466, 0.4578275, 0.40821073][c]) / [0.26862954, 0.26130258, 0.27577711][c]);

  function cosine(a: number[], b: number[]): number {
    const dot = (x: number[], y: number[]) => x.reduce((sum, value, i) => sum + value * y[i], 0);
    return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  }
});
