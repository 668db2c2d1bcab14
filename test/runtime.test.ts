import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { InputError, parseSafetensors, toFloat32, toTypedArray } from "@quad-lora/base";
import { type FolderFiles, openPipeline, type Pipeline, schedulerClasses, seededNoise } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles, readImage, readMask } from "quad-lora";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { exposedPocket, pocketFolder } from "./helpers/exposed-pocket.ts";
import { meanDifference, relativeDifference } from "./helpers/pictures.ts";

const reference = fileURLToPath(new URL("reference/pocket/", import.meta.url));
const picture = (name: string) => `${reference}images/${name}.png`;
/** PyTorch and diffusers, 8 DDIM steps: what the same start noise has to become. */
const { subjects, tasks } = JSON.parse(readFileSync(`${reference}end-to-end.json`, "utf8")) as {
  subjects: string[];
  tasks: Record<string, { prompts: string[]; guidance: number; steps: number }>;
};
const endToEnd = parseSafetensors(readFileSync(`${reference}end-to-end.safetensors`), "end-to-end.safetensors").tensors;
const oneRun = parseSafetensors(readFileSync(`${reference}unet.safetensors`), "unet.safetensors").tensors;

function row(name: string, index: number): Float32Array {
  const tensor = endToEnd.get(name)!;
  const size = tensor.shape.slice(1).reduce((product, length) => product * length, 1);
  return toFloat32(tensor).slice(index * size, (index + 1) * size);
}

/** What each reference task was given besides its prompt. */
async function taskImages(task: string, name: string) {
  if (task === "inpaint" || task === "erase") {
    return { image: await readImage(picture(`source-${name}`)), mask: await readMask(picture("mask")) };
  }
  return task === "sketch" ? { image: await readImage(picture(`sketch-input-${name}`)) } : {};
}

async function expectReference(pipeline: Pipeline, task: string, index: number) {
  const { prompts, guidance, steps } = tasks[task];
  const name = subjects[index].replaceAll(" ", "-");
  const latents = row(`${task}.start`, index);
  const images = await taskImages(task, name);
  const result = await pipeline.generate({ prompt: prompts[index], guidance, steps, latents, ...images });
  const expected = await readImage(picture(`${task}-${name}`));
  expect([result.width, result.height]).toEqual([expected.width, expected.height]);
  expect(relativeDifference(result.latents, row(`${task}.latents`, index))).toBeLessThan(1e-4);
  // Pictures are rounded to 8 bits: now and then a value falls on the other side.
  expect(meanDifference(result.data, expected.data)).toBeLessThan(0.01);
}

/** The reference's inputs of one UNet run. */
function unetInputs() {
  const input = (name: string, type: "float32" | "int64") => {
    const tensor = oneRun.get(name)!;
    return { type, dims: tensor.shape, data: toTypedArray(tensor) as Float32Array };
  };
  return {
    sample: input("sample", "float32"),
    timestep: input("timestep", "int64"),
    encoder_hidden_states: input("encoder_hidden_states", "float32"),
  };
}

describe("the model as exported", () => {
  let pipeline: Pipeline;
  beforeAll(async () => {
    pipeline = await openPipeline({ ort, files: folderFiles(pocketFolder) });
  });
  afterAll(() => pipeline.dispose());
  const fast = { prompt: "crab animal marine", steps: 3, guidance: 3, seed: 1 };

  test.each(["base", "inpaint"].flatMap((task) => subjects.map((subject, index) => ({ task, subject, index }))))(
    "equals PyTorch and diffusers: $task, $subject",
    async ({ task, index }) => {
      await expectReference(pipeline, task, index);
    },
  );

  test("one UNet run equals PyTorch", async () => {
    const { out_sample } = await pipeline.runComponent("unet", unetInputs());
    expect(out_sample!.dims).toEqual([2, 4, 16, 16]);
    expect(relativeDifference(out_sample!.data as Float32Array, toFloat32(oneRun.get("out.base")!))).toBeLessThan(1e-4);
  });

  test("a seed is its noise, and decides the picture", async () => {
    const first = await pipeline.generate(fast);
    const same = await pipeline.generate({ ...fast, seed: undefined, latents: seededNoise(1, 4 * 16 * 16) });
    expect(same.latents).toEqual(first.latents);
    const drawn = await pipeline.generate({ ...fast, seed: undefined });
    expect((await pipeline.generate({ ...fast, seed: drawn.seed })).latents).toEqual(drawn.latents);
    expect(relativeDifference(drawn.latents, first.latents)).toBeGreaterThan(0.1);
  });

  test("guidance between equal prompts is no guidance", async () => {
    const guided = await pipeline.generate({ ...fast, negativePrompt: fast.prompt, guidance: 5 });
    const single = await pipeline.generate({ ...fast, guidance: 1 });
    expect(relativeDifference(guided.latents, single.latents)).toBeLessThan(1e-4);
  });

  test("calls at the same time do not disturb each other", async () => {
    const requests = [fast, { ...fast, seed: 2 }, { ...fast, prompt: "tulip plant flower" }];
    const together = await Promise.all(requests.map((request) => pipeline.generate(request)));
    for (const [index, request] of requests.entries()) {
      expect((await pipeline.generate(request)).latents).toEqual(together[index].latents);
    }
  });

  test("a graph from bytes gives what a graph from a path gives", async () => {
    const { localPath, ...remote } = folderFiles(pocketFolder);
    const other = await openPipeline({ ort, files: remote satisfies FolderFiles });
    expect((await other.generate(fast)).latents).toEqual((await pipeline.generate(fast)).latents);
    await other.dispose();
  });

  test("image-to-image runs the last part of the schedule and stays near the image", async () => {
    const image = await readImage(picture("source-crab"));
    const seen: number[] = [];
    const distance = async (denoise: number) => {
      const result = await pipeline.generate({
        ...fast,
        steps: 8,
        image,
        denoise,
        onStep: ({ steps }) => seen.push(steps),
      });
      return meanDifference(result.data, image.data);
    };
    const [little, much] = [await distance(0.25), await distance(0.75)];
    expect(seen).toEqual([2, 2, 6, 6, 6, 6, 6, 6]);
    expect(little).toBeLessThan(much);
    expect(little).toBeLessThan(15);
  });

  // A scheduler of flow matching is refused, as the model predicts noise.
  const diffusionClasses = schedulerClasses.filter((name) => !name.startsWith("FlowMatch"));

  test.each(diffusionClasses)("%s paints a whole picture in place of a hole", async (scheduler) => {
    const [image, mask] = [await readImage(picture("source-pizza")), await readMask(picture("mask"))];
    const prompt = "slice of pizza food prepared";
    // What a scheduler does exactly is tested elsewhere; here its noise levels have to fit the loop. Latents of
    // pictures have unit variance, so a wrong level shows at once.
    const { latents } = await pipeline.generate({ ...fast, prompt, image, mask, steps: 12, scheduler });
    const expected = row("inpaint.latents", 0);
    const energy = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0) / values.length;
    expect(energy(latents.map((value, index) => value - expected[index])) / energy(expected)).toBeLessThan(0.5);
  });

  test("aborting stops before the next step", async () => {
    const controller = new AbortController();
    const steps: number[] = [];
    const running = pipeline.generate({
      ...fast,
      signal: controller.signal,
      onStep: ({ step }) => {
        steps.push(step);
        if (step === 2) controller.abort();
      },
    });
    await expect(running).rejects.toMatchObject({ name: "AbortError" });
    expect(steps).toEqual([1, 2]);
    await expect(pipeline.generate({ ...fast, signal: AbortSignal.abort("enough") })).rejects.toBe("enough");
  });

  test("refuses what the model cannot do, and says why", async () => {
    const image = { width: 64, height: 64, data: new Uint8Array(64 * 64 * 3) };
    const mask = { width: 64, height: 64, data: new Uint8Array(64 * 64) };
    for (const [options, message] of [
      [{ mask }, /a mask needs an image/],
      [{ image: { ...image, width: 32 } }, /32 x 64 x 3 = 6144, got 12288/],
      [{ image, width: 32 }, /expected 32 x 64, got 64 x 64/],
      [{ width: 30 }, /width does not fit.*multiple of 4/],
      [{ latents: new Float32Array(3) }, /4 x 16 x 16 = 1024, got 3/],
      [{ denoise: 0.5 }, /starts from an image/],
      [{ image, denoise: 0 }, /\(0, 1\], got 0/],
      [{ steps: 0 }, /steps/],
      [{ seed: 0.5 }, /seed/],
      [{ scheduler: "KarrasScheduler" }, /KarrasScheduler|_class_name/],
      [{ scheduler: "FlowMatchEulerDiscreteScheduler" }, /prediction_type.*"flow_prediction".*"v_prediction"/],
    ] as const) {
      const generating = pipeline.generate({ ...fast, ...options });
      await expect(generating).rejects.toThrow(InputError);
      await expect(generating).rejects.toThrow(message);
    }
    await expect(pipeline.use("sketch")).rejects.toThrow(
      /no task or adapter sketch \(expected one of base\)\. .*quad expose/,
    );
    await expect(pipeline.use({ sketch: 1 })).rejects.toThrow(/slots.json: .*no adapter inputs.*quad expose/);
    const { sample, ...rest } = unetInputs();
    await expect(pipeline.runComponent("unet", rest)).rejects.toThrow(/sample: an input of the graph is not given/);
    const wrong = { ...rest, sample: { ...sample, dims: [2, 4, 16, 36] } };
    await expect(pipeline.runComponent("unet", wrong)).rejects.toThrow(
      /float32 \[batch, 9, height, width\], got float32 \[2, 4/,
    );
  });

  test("an empty folder is named", async () => {
    const opening = openPipeline({ ort, files: folderFiles(`${pocketFolder}/unet`) });
    await expect(opening).rejects.toThrow(/unet\/scheduler\/scheduler_config.json: is missing/);
  });
});

test("a task that names no adapter runs with the one of its name, or with none", async () => {
  const tasks = { format: "quad-tasks", version: 1, tasks: { flat: { steps: 1 }, plain: { steps: 1 }, base: {} } };
  const files = folderFiles(await exposedPocket("dynamic"));
  const read: FolderFiles["read"] = async (path) =>
    path === "tasks.json" ? new TextEncoder().encode(JSON.stringify(tasks)) : files.read(path);
  const pipeline = await openPipeline({ ort, files: { ...files, read } });
  const outputOf = async (selection: Parameters<Pipeline["use"]>[0]) => {
    await pipeline.use(selection);
    return (await pipeline.runComponent("unet", unetInputs())).out_sample.data;
  };
  const [bare, flat] = [await outputOf(null), await outputOf({ flat: 1 })];
  expect(flat).not.toEqual(bare);
  expect(await outputOf("flat")).toEqual(flat);
  for (const name of ["plain", "base"]) expect(await outputOf(name)).toEqual(bare);
  await pipeline.dispose();
});

describe.each(["dynamic", "fixed"] as const)("the model with adapter inputs of %s rank", (rank) => {
  let pipeline: Pipeline;
  let sessions = 0;
  beforeAll(async () => {
    const counting = {
      Tensor: ort.Tensor,
      InferenceSession: {
        create: (...parameters: Parameters<typeof ort.InferenceSession.create>) => {
          sessions++;
          return ort.InferenceSession.create(...parameters);
        },
      } as typeof ort.InferenceSession,
    };
    pipeline = await openPipeline({ ort: counting, files: folderFiles(await exposedPocket(rank)) });
  });
  afterAll(() => pipeline?.dispose());

  test.each(["flat", "sketch", "erase", "base"].map((task, index) => ({ task, subject: subjects[index], index })))(
    "equals PyTorch and diffusers: $task, $subject",
    async ({ task, index }) => {
      await pipeline.use(task);
      await expectReference(pipeline, task, index);
    },
  );

  test.each([
    ["base", null],
    ["flat", "flat"],
    ["sketch", { sketch: 1 }],
    ["erase", "erase"],
    ["flat@0.7+sketch@0.5", { flat: 0.7, sketch: 0.5 }],
    ["flat@-0.4", { flat: -0.4, sketch: 0 }],
  ] as const)("one UNet run equals PyTorch: %s", async (name, selection) => {
    await pipeline.use(selection);
    const { out_sample } = await pipeline.runComponent("unet", unetInputs());
    const expected = toFloat32(oneRun.get(`out.${name}`)!);
    expect(relativeDifference(out_sample!.data as Float32Array, expected)).toBeLessThan(1e-4);
  });

  test("a task brings its defaults and knows what it needs", async () => {
    await pipeline.use("erase");
    const { image, mask } = await taskImages("erase", "crab");
    const given = { latents: row("erase.start", 2), image, mask };
    const result = await pipeline.generate(given);
    expect([result.steps, result.guidance]).toEqual([8, 2]);
    expect(relativeDifference(result.latents, row("erase.latents", 2))).toBeLessThan(1e-4);
    await expect(pipeline.generate({ ...given, mask: undefined })).rejects.toThrow(/this task needs the option "mask"/);
  });

  test("switching opens no session, and a run under way keeps its adapters", async () => {
    const before = sessions;
    const request = { prompt: "crab animal marine", steps: 2, guidance: 3, seed: 5 };
    await pipeline.use("flat");
    const alone = await pipeline.generate(request);
    const running = pipeline.generate(request);
    await pipeline.use("base");
    expect((await running).latents).toEqual(alone.latents);
    expect((await pipeline.generate(request)).latents).not.toEqual(alone.latents);
    expect(sessions).toBe(before);
  });

  test("an adapter can be added from bytes", async () => {
    const files = folderFiles(await exposedPocket(rank));
    pipeline.addAdapter("again", await files.read("adapters/flat.safetensors"));
    expect(pipeline.adapters).toEqual(expect.arrayContaining(["again", "flat", "sketch", "erase"]));
    await pipeline.use("again");
    const { out_sample } = await pipeline.runComponent("unet", unetInputs());
    const expected = toFloat32(oneRun.get("out.flat")!);
    expect(relativeDifference(out_sample!.data as Float32Array, expected)).toBeLessThan(1e-4);
  });
});
