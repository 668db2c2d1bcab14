import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, type SafetensorsFile, toFloat32 } from "@quad-lora/base";
import { type Conditions, type GenerateOptions, type ModelRun, openPipeline, type Pipeline } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { expose, folderFiles, readImage } from "quad-lora";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "./helpers/models.ts";
import { relativeDifference } from "./helpers/pictures.ts";

/** Tiny models of real architectures with what PyTorch and diffusers made of them; see the README there. */
const root = fileURLToPath(new URL("families", import.meta.url));
const scratch = temporaryFolder();
const request = { prompt: "a photo of a red cat", steps: 2, seed: 3, width: 64, height: 64 };

const open = (folder: string) =>
  openPipeline({
    ort: ort as never,
    files: folderFiles(folder),
    sessionOptions: { logSeverityLevel: 3, intraOpNumThreads: 1 },
  });
const openFamily = (family: string) => open(join(root, family, "model"));

function referenceOf(family: string): SafetensorsFile {
  return parseSafetensors(readFileSync(join(root, family, "reference.safetensors")), family);
}

const floats = (file: SafetensorsFile, name: string) => toFloat32(file.tensors.get(name)!, name);

/** The denoiser's runs of one picture, copied. */
async function runsOf(pipeline: Pipeline, options: GenerateOptions): Promise<ModelRun[]> {
  const runs: ModelRun[] = [];
  await pipeline.generate({ ...options, onModelRun: (run) => runs.push(structuredClone(run)) });
  return runs;
}

/** What each family needs beside a prompt. */
async function pictures(family: string): Promise<Partial<GenerateOptions>> {
  if (family === "instruct-pix2pix") return { image: await readImage(join(root, family, "input.png")) };
  if (family === "controlnet") return { controlImage: await readImage(join(root, family, "control-input.png")) };
  return {};
}

describe.each(["sd21-v", "sdxl", "lcm", "instruct-pix2pix", "controlnet", "sd3", "flux", "pixart"])("%s", (family) => {
  let pipeline: Pipeline;
  beforeAll(async () => {
    pipeline = await openFamily(family);
  });
  afterAll(() => pipeline.dispose());

  test("a run is handed over with all of the graph's own inputs: given again, they give its output", async () => {
    const { denoiser } = pipeline.family;
    const runs = await runsOf(pipeline, { ...request, ...(await pictures(family)), guidance: 3 });
    expect(runs).toHaveLength(2);
    const wanted = (await pipeline.inputsOf(denoiser)).map(({ name }) => name);
    for (const { inputs, output } of runs) {
      expect(Object.keys(inputs).sort()).toEqual(wanted.sort());
      const [again] = Object.values(await pipeline.runComponent(denoiser, inputs));
      expect(again.dims).toEqual(output.dims);
      expect(again.data).toEqual(output.data);
    }
  });

  test("what a prompt is encoded to can be passed in its place", async () => {
    const given = await pictures(family);
    const guided = { ...request, ...given, negativePrompt: "a big blue dog", guidance: 3 };
    const { prompt, negativePrompt, ...rest } = guided;
    const conditions = {
      prompt: await pipeline.encodePrompt(prompt),
      negative: await pipeline.encodePrompt(negativePrompt),
    };
    const { latents } = await pipeline.generate({ ...rest, conditions });
    expect(latents).toEqual((await pipeline.generate(guided)).latents);
    // As other tools write them: with a batch axis.
    const withBatch = (row: Conditions): Conditions =>
      Object.fromEntries(Object.entries(row).map(([name, { dims, values }]) => [name, { dims: [1, ...dims], values }]));
    const batched = { prompt: withBatch(conditions.prompt), negative: withBatch(conditions.negative) };
    expect((await pipeline.generate({ ...rest, conditions: batched })).latents).toEqual(latents);
  });
});

test.each([
  ["sd21-v", {}, { 7.5: 2, 1.1: 2, 1: 1, 0: 1, [-1]: 1 }],
  ["sdxl", {}, { 5: 2, 1: 1, 0: 1 }],
  ["lcm", {}, { 8.5: 1, 1: 1 }],
  ["instruct-pix2pix", { imageGuidance: 1.5 }, { 7.5: 3, 1: 1, 0: 1 }],
  ["instruct-pix2pix", { imageGuidance: 1 }, { 7.5: 2, 1: 1 }],
  ["instruct-pix2pix", { imageGuidance: 0.5 }, { 7.5: 1 }],
  ["flux", {}, { 3.5: 1 }],
  ["flux", { trueGuidance: 2 }, { 3.5: 2 }],
] as const)("%s with %o has no row that guidance does not need: %o", async (family, options, rows) => {
  await using pipeline = await openFamily(family);
  for (const [guidance, expected] of Object.entries(rows)) {
    const given = { ...request, ...(await pictures(family)), ...options, guidance: Number(guidance) };
    for (const { output } of await runsOf(pipeline, given)) expect(output.dims[0], guidance).toBe(expected);
  }
});

test("guidance of 0, Turbo's recipe, follows the prompt as guidance of 1 does", async () => {
  await using pipeline = await openFamily("sdxl");
  const [off, one] = [0, 1].map((guidance) => pipeline.generate({ ...request, guidance, negativePrompt: "blue" }));
  expect((await off).latents).toEqual((await one).latents);
});

test("prompts of two encoders become what diffusers gives the UNet", async () => {
  await using pipeline = await openFamily("sdxl");
  const reference = referenceOf("sdxl");
  for (const [prompt, states, pooled] of [
    ["a photo of a red cat", "prompt_embeds", "pooled"],
    ["a big blue dog", "negative_prompt_embeds", "negative_pooled"],
  ]) {
    const { encoder_hidden_states, text_embeds } = await pipeline.encodePrompt(prompt);
    const run = "pipeline.euler_leading_negative";
    expect(encoder_hidden_states.dims).toEqual(reference.tensors.get(`${run}.${states}`)!.shape.slice(1));
    expect(relativeDifference(encoder_hidden_states.values, floats(reference, `${run}.${states}`))).toBeLessThan(1e-5);
    expect(relativeDifference(text_embeds.values, floats(reference, `${run}.${pooled}`))).toBeLessThan(1e-5);
  }
});

test("an encoded picture decodes to what the decoder makes of the encoder's own mean", async () => {
  await using pipeline = await openFamily("sd3");
  const image = await readImage(join(root, "instruct-pix2pix", "input.png"));
  const { dims, values } = await pipeline.encodeImage(image);
  const data = Float32Array.from(
    { length: 3 * 64 * 64 },
    (_, i) => image.data[3 * (i % 4096) + Math.floor(i / 4096)] / 127.5 - 1,
  );
  const sample = { type: "float32" as const, dims: [1, 3, 64, 64], data };
  const { latent_parameters: parameters } = await pipeline.runComponent("vae_encoder", { sample });
  const mean = (parameters.data as Float32Array).slice(0, values.length);
  // Stable Diffusion 3's shift and scale.
  expect(dims).toEqual([16, 8, 8]);
  expect(
    relativeDifference(
      values,
      mean.map((value) => (value - 0.0609) * 1.5305),
    ),
  ).toBeLessThan(1e-5);
  await expect(pipeline.encodeImage({ ...image, width: 32 })).rejects.toThrow(/32 x 64 x 3/);
});

test("a LoRA of a ControlNet is in use in its graph, and PyTorch's result comes out", async () => {
  const out = join(scratch, "control-lora");
  const adapters = { control_lora: join(root, "controlnet/adapters/control_lora.safetensors") };
  await expose(join(root, "controlnet/model"), { out, adapters });
  await using pipeline = await open(out);
  const { cases } = JSON.parse(readFileSync(join(root, "controlnet/reference.json"), "utf8")) as {
    cases: Record<
      string,
      { component: string; adapter: string | null; strength: number; inputs: string[]; outputs: string[] }
    >;
  };
  const reference = referenceOf("controlnet");
  let compared = 0;
  for (const [name, { component, adapter, strength, inputs, outputs }] of Object.entries(cases)) {
    if (component !== "controlnet" || !(adapter === null || adapter === "control_lora")) continue;
    await pipeline.use(adapter && { [adapter]: strength });
    const given = inputs.map((input) => {
      const tensor = reference.tensors.get(`${name}.inputs.${input}`)!;
      return [input, { type: "float32" as const, dims: tensor.shape, data: toFloat32(tensor) }];
    });
    const results = await pipeline.runComponent("controlnet", Object.fromEntries(given));
    for (const output of outputs) {
      const expected = floats(reference, `${name}.outputs.${output}`);
      expect(relativeDifference(results[output].data as Float32Array, expected)).toBeLessThan(1e-4);
    }
    if (adapter) compared++;
  }
  expect(compared).toBeGreaterThan(0);
});

test("all graphs in float16 draw what PyTorch draws in float32, but for its rounding", async () => {
  await using pipeline = await openFamily("sd15-fp16");
  const { pipelines } = JSON.parse(readFileSync(join(root, "sd15-fp16/reference.json"), "utf8"));
  const { prompt, steps, guidance } = pipelines.ddim;
  const reference = referenceOf("sd15-fp16");
  const { latents } = await pipeline.generate({ prompt, steps, guidance, latents: floats(reference, "latents") });
  expect(relativeDifference(latents, floats(reference, "pipeline.ddim.latents"))).toBeLessThan(5e-3);
});

test("options that a family has no use for are refused", async () => {
  await using xl = await openFamily("sdxl");
  await using control = await openFamily("controlnet");
  const image = await readImage(join(root, "instruct-pix2pix", "input.png"));
  for (const [pipeline, options, message] of [
    [xl, { imageGuidance: 1.5 }, /no image guidance/],
    [xl, { trueGuidance: 2 }, /trueGuidance is for models that take guidance as an input/],
    [xl, { controlImage: image }, /takes no control image/],
    [xl, { guidanceRescale: 1.1 }, /guidanceRescale is out of range.*\[0, 1\], got 1.1/],
    [
      xl,
      { scheduler: { _class_name: "FlowMatchEulerDiscreteScheduler", prediction_type: "flow_prediction" } },
      /_class_name: .*not one for Stable Diffusion XL/,
    ],
    [control, {}, /needs the option controlImage/],
    [control, { controlImage: { ...image, width: 32, height: 128 } }, /control image has another size/],
  ] as const) {
    await expect(pipeline.generate({ ...request, ...options })).rejects.toThrow(message);
  }
});

test("a folder with some of the text encoders that are needed together is refused, as refiners are", async () => {
  const files = folderFiles(join(root, "sdxl/model"));
  const read = async (path: string) => {
    const bytes = await files.read(path);
    if (path !== "model_index.json") return bytes;
    const index = JSON.parse(new TextDecoder().decode(bytes));
    return new TextEncoder().encode(JSON.stringify({ ...index, text_encoder: [null, null] }));
  };
  const opening = openPipeline({ ort: ort as never, files: { ...files, read } });
  await expect(opening).rejects.toThrow(/model_index\.json: text_encoder: Stable Diffusion XL needs this text encoder/);
});

test("a folder without any text encoder draws from what prompts were encoded to, and refuses prompts", async () => {
  const files = folderFiles(join(root, "flux/model"));
  const read = async (path: string) => {
    const bytes = await files.read(path);
    if (path !== "model_index.json") return bytes;
    const index = JSON.parse(new TextDecoder().decode(bytes));
    const none = { text_encoder: [null, null], text_encoder_2: [null, null] };
    return new TextEncoder().encode(JSON.stringify({ ...index, ...none }));
  };
  await using whole = await openFamily("flux");
  await using pipeline = await openPipeline({ ort: ort as never, files: { ...files, read } });
  const { prompt, ...rest } = request;
  const conditions = { prompt: await whole.encodePrompt(prompt) };
  expect((await pipeline.generate({ ...rest, conditions })).latents).toEqual((await whole.generate(request)).latents);
  await expect(pipeline.generate(request)).rejects.toThrow(/no text encoder.*option conditions/);
});
