import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, type SafetensorsFile, toFloat32 } from "@quad-lora/base";
import {
  type FolderFiles,
  type GenerateOptions,
  InputError,
  families as known,
  openPipeline,
  type Pipeline,
  type RowInput,
} from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { expose, folderFiles, readImage } from "quad-lora";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "./helpers/models.ts";

/** Tiny models of real architectures with what PyTorch and diffusers made of them; see the README there. */
const families = fileURLToPath(new URL("families", import.meta.url));

/** One run of a diffusers pipeline, as `reference.json` has it. */
interface Run {
  prompt: string | null;
  negative_prompt?: string | null;
  steps: number;
  guidance: number;
  adapter: string | null;
  strength?: number;
  scheduler_folder: string;
  size: [number, number];
  true_cfg_scale?: number;
  image_guidance_scale?: number;
  guidance_rescale?: number;
  controlnet_conditioning_scale?: number;
  control_image?: string;
  step_noises?: number;
}

const names = ["sd21-v", "sdxl", "lcm", "instruct-pix2pix", "controlnet", "sd3", "flux", "pixart", "sana"];

function load(family: string) {
  const folder = join(families, family);
  const { pipelines } = JSON.parse(readFileSync(join(folder, "reference.json"), "utf8"));
  const reference = parseSafetensors(readFileSync(join(folder, "reference.safetensors")), family);
  return { folder, runs: Object.entries(pipelines as Record<string, Run>), reference };
}

const floats = (file: SafetensorsFile, name: string): Float32Array => {
  const tensor = file.tensors.get(name);
  if (!tensor) throw new Error(`no ${name}`);
  return toFloat32(tensor, name);
};
const row = (file: SafetensorsFile, name: string): RowInput => ({
  dims: file.tensors.get(name)!.shape.slice(1),
  values: floats(file, name),
});

/** The model with another of its scheduler folders in the usual one's place. */
function withScheduler(model: string, scheduler: string): FolderFiles {
  const files = folderFiles(model);
  const moved = (path: string) => path.replace(/^scheduler\//, `${scheduler}/`);
  return { ...files, read: (path) => files.read(moved(path)), exists: (path) => files.exists(moved(path)) };
}

async function open(family: string, run: Run): Promise<Pipeline> {
  const { folder } = load(family);
  const model = join(folder, "model");
  const openFiles = (files: FolderFiles) =>
    openPipeline({ ort: ort as never, files, sessionOptions: { logSeverityLevel: 3, intraOpNumThreads: 1 } });
  if (run.adapter === null) return openFiles(withScheduler(model, run.scheduler_folder));
  const out = join(temporaryFolder(), "exposed");
  const path = ["", ".safetensors"].map((ending) => join(folder, "adapters", run.adapter + ending));
  const adapter = path.find((candidate) => candidate.endsWith(".safetensors") && exists(candidate)) ?? path[0];
  await expose(model, { out, adapters: { [run.adapter]: adapter } });
  const pipeline = await openFiles(folderFiles(out));
  await pipeline.use({ [run.adapter]: run.strength ?? 1 });
  return pipeline;
}

function exists(path: string): boolean {
  try {
    readFileSync(path);
    return true;
  } catch {
    return false;
  }
}

async function optionsOf(family: string, name: string, run: Run): Promise<GenerateOptions> {
  const { folder, reference } = load(family);
  const [height, width] = run.size;
  const picture = (file: string) => readImage(join(folder, file), { width, height });
  const given = reference.tensors.has("pipeline.prompt_embeds");
  const conditions = (prefix: string) => ({
    encoder_hidden_states: row(reference, `pipeline.${prefix}prompt_embeds`),
    encoder_attention_mask: row(reference, `pipeline.${prefix}prompt_attention_mask`),
  });
  return {
    prompt: run.prompt ?? undefined,
    negativePrompt: run.negative_prompt ?? undefined,
    steps: run.steps,
    guidance: run.guidance,
    trueGuidance: run.true_cfg_scale,
    imageGuidance: run.image_guidance_scale,
    guidanceRescale: run.guidance_rescale,
    controlScale: run.controlnet_conditioning_scale,
    ...{ width, height, seed: 0, latents: floats(reference, "latents") },
    ...(run.control_image ? { controlImage: await picture(run.control_image) } : {}),
    ...(family === "instruct-pix2pix" ? { image: await picture("input.png") } : {}),
    ...(given ? { conditions: { prompt: conditions(""), negative: conditions("negative_") } } : {}),
    // Noise that the scheduler draws comes from the reference, step by step.
    ...((run.step_noises ?? 0) > 0
      ? { stepNoise: (step: number) => floats(reference, `pipeline.${name}.step_noise.${step}`) }
      : {}),
  };
}

describe.each(names)("%s", (family) => {
  test.each(load(family).runs)("%s: the final latents are diffusers'", async (name, run) => {
    const pipeline = await open(family, run);
    try {
      const { latents, data } = await pipeline.generate(await optionsOf(family, name, run));
      const expected = floats(load(family).reference, `pipeline.${name}.latents`);
      const largest = Math.max(...expected.map(Math.abs));
      const difference = Math.max(...latents.map((value, index) => Math.abs(value - expected[index])));
      expect(latents).toHaveLength(expected.length);
      expect(difference / largest).toBeLessThan(1e-3);
      expect(new Set(data).size).toBeGreaterThan(8);
    } finally {
      await pipeline.dispose();
    }
  });
});

test("a pipeline class that belongs to no family is refused by its name", async () => {
  const files = folderFiles(join(families, "sdxl", "model"));
  const other: FolderFiles = {
    ...files,
    read: async (path) =>
      path === "model_index.json" ? Buffer.from('{"_class_name": "KandinskyPipeline"}') : files.read(path),
  };
  const opening = openPipeline({ ort: ort as never, files: other });
  await expect(opening).rejects.toThrow(InputError);
  await expect(opening).rejects.toThrow(
    /_class_name: this pipeline class is not supported .*Flux.*got KandinskyPipeline/,
  );
});

test("after dispose, which may come twice, every call is refused, and nothing is opened", async () => {
  const files = folderFiles(join(families, "lcm", "model"));
  let opened = 0;
  const counting = {
    Tensor: ort.Tensor,
    InferenceSession: {
      create: (...given: Parameters<typeof ort.InferenceSession.create>) => {
        opened++;
        return ort.InferenceSession.create(...given);
      },
    },
  };
  const pipeline = await openPipeline({ ort: counting as never, files });
  await pipeline.dispose();
  await pipeline.dispose();
  const before = opened;
  expect(before).toBeGreaterThan(0);
  for (const call of [
    () => pipeline.generate({ prompt: "x" }),
    () => pipeline.encodePrompt("x"),
    () => pipeline.encodeImage({ width: 8, height: 8, data: new Uint8Array(192) }),
    () => pipeline.runComponent("unet", {}),
    () => pipeline.inputsOf("vae_encoder"),
    () => pipeline.use(null),
    async () => pipeline.bind("unet", {}),
    async () => pipeline.addAdapter("x", new Uint8Array()),
  ]) {
    const refused = await call().catch((error: unknown) => error);
    expect(refused, String(call)).toBeInstanceOf(InputError);
    expect((refused as InputError).message, String(call)).toMatch(/was disposed of/);
  }
  expect(opened).toBe(before);
});

test("a picture under way ends with an InputError when its pipeline is disposed of, and dispose waits for all", async () => {
  const pipeline = await open("lcm", load("lcm").runs[0][1]);
  const disposals: Promise<string>[] = [];
  const order: string[] = [];
  const generating = pipeline.generate({
    prompt: "x",
    steps: 4,
    onStep: ({ step }) => {
      if (step > 1) return;
      for (const name of ["first", "second"])
        disposals.push(
          pipeline
            .dispose()
            .then(() => order.push(name))
            .then(() => name),
        );
    },
  });
  await expect(generating).rejects.toThrow(InputError);
  await expect(generating).rejects.toThrow(/was disposed of/);
  await Promise.all(disposals);
  expect(order).toEqual(["first", "second"]);
});

test("the page on models lists every pipeline class of every family, and no other", () => {
  const page = readFileSync(new URL("../docs/models.md", import.meta.url), "utf8");
  const shown = [...page.matchAll(/`(\w+Pipeline\w*)`/g)].map(([, name]) => name);
  expect([...new Set(shown)].sort()).toEqual(
    [...new Set(known.flatMap(({ pipelineClasses }) => pipelineClasses))].sort(),
  );
});
