import { readFileSync } from "node:fs";
import { cp, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, type SafetensorsFile, toFloat32, toTypedArray } from "@quad-lora/base";
import { loadModel, type Model, saveModel, Tensor, tensorType } from "@quad-lora/onnx";
import { families, loadTokenizer, type ModelRun, openPipeline, type Pipeline } from "@quad-lora/runtime";
import fc from "fast-check";
import * as ort from "onnxruntime-node";
import { folderFiles, readImage } from "quad-lora";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "./helpers/models.ts";
import { relativeDifference } from "./helpers/pictures.ts";

/** Tiny models of real architectures with what PyTorch and diffusers made of them; see the README there. */
const root = fileURLToPath(new URL("families", import.meta.url));
const scratch = temporaryFolder();
const cat = "a photo of a red cat";

const open = (folder: string) =>
  openPipeline({
    ort: ort as never,
    files: folderFiles(folder),
    sessionOptions: { logSeverityLevel: 3, intraOpNumThreads: 1 },
  });

function referenceOf(family: string): SafetensorsFile {
  return parseSafetensors(readFileSync(join(root, family, "reference.safetensors")), family);
}

const floats = (file: SafetensorsFile, name: string) => toFloat32(file.tensors.get(name)!, name);
const numbers = (file: SafetensorsFile, name: string) =>
  Array.from(toTypedArray(file.tensors.get(name)!) as BigInt64Array, Number);

/** A copy of a family's model without some of its entries. */
async function copyOf(family: string, name: string, without: readonly string[] = []): Promise<string> {
  const copy = join(scratch, name);
  await cp(join(root, family, "model"), copy, { recursive: true });
  for (const entry of without) await rm(join(copy, entry), { recursive: true });
  return copy;
}

/** A copy whose transformer is another graph. */
async function withTransformer(family: string, name: string, edit: (model: Model) => void): Promise<string> {
  const copy = await copyOf(family, name, ["transformer/model.onnx"]);
  const model = loadModel(join(root, family, "model/transformer/model.onnx"));
  edit(model);
  await saveModel(model, join(copy, "transformer/model.onnx"));
  return copy;
}

describe("tokens of T5", () => {
  test.each([
    ["sd3", "tokenizer_3", 256],
    ["flux", "tokenizer_2", 512],
    ["pixart", "tokenizer", 120],
  ])("%s %s are transformers'", async (family, folder, tokens) => {
    const reference = referenceOf(family);
    const tokenizer = await loadTokenizer(folderFiles(join(root, family, "model")), 77, { folder, tokens });
    const { ids, mask } = tokenizer.encodeMasked(cat);
    expect(ids).toEqual(numbers(reference, `tokens.${folder}`));
    if (family === "pixart") expect(mask).toEqual(numbers(reference, "tokens.attention_mask"));
  });
});

describe("Stable Diffusion 3", () => {
  const clipTokens = 77;

  async function expectPrompt(pipeline: Pipeline, prompt: string, prefix: string, hasT5: boolean) {
    const reference = referenceOf("sd3");
    const { encoder_hidden_states: states, pooled_projections: pooled } = await pipeline.encodePrompt(prompt);
    const expected = floats(reference, `pipeline.flow.${prefix}prompt_embeds`);
    const [, , width] = reference.tensors.get(`pipeline.flow.${prefix}prompt_embeds`)!.shape;
    if (!hasT5) expected.fill(0, clipTokens * width);
    expect(states.dims).toEqual([clipTokens + 256, width]);
    expect(relativeDifference(states.values, expected)).toBeLessThan(1e-5);
    expect(relativeDifference(pooled.values, floats(reference, `pipeline.flow.${prefix}pooled`))).toBeLessThan(1e-5);
  }

  test("gives the transformer what diffusers gives it", async () => {
    await using pipeline = await open(join(root, "sd3/model"));
    await expectPrompt(pipeline, cat, "", true);
    await expectPrompt(pipeline, "", "negative_", true);
  });

  test("without T5 has zeros in its place, and draws", async () => {
    await using pipeline = await open(await copyOf("sd3", "no-t5", ["text_encoder_3", "tokenizer_3"]));
    await expectPrompt(pipeline, cat, "", false);
    await expectPrompt(pipeline, "", "negative_", false);
    const { latents } = await pipeline.generate({ prompt: cat, steps: 2, seed: 1, width: 64, height: 64 });
    expect(latents.every(Number.isFinite)).toBe(true);
  });

  test("starts from a picture at the noise level of the first step that is left", async () => {
    await using pipeline = await open(join(root, "sd3/model"));
    const image = await readImage(join(root, "instruct-pix2pix/input.png"));
    const noise = floats(referenceOf("sd3"), "latents");
    const runs: ModelRun[] = [];
    const onModelRun = (run: ModelRun) => runs.push(structuredClone(run));
    const options = { prompt: cat, steps: 4, guidance: 1, image, latents: noise, onModelRun };
    await pipeline.generate({ ...options, denoise: 0.5 });
    expect(runs).toHaveLength(2);
    // The third of diffusers' noise levels for four steps.
    const sigma = floats(referenceOf("sd3"), "pipeline.flow.sigmas")[2];
    const { values: original } = await pipeline.encodeImage(image);
    const expected = noise.map((value, i) => sigma * value + (1 - sigma) * original[i]);
    expect(relativeDifference(runs[0].inputs.hidden_states.data as Float32Array, expected)).toBeLessThan(1e-5);
    expect((runs[0].inputs.timestep.data as Float32Array)[0] / 1000).toBeCloseTo(sigma, 5);
  });
});

describe("Flux", () => {
  const flux = families.find(({ name }) => name === "Flux")!;
  const layoutOf = (latentChannels: number, latentHeight: number, latentWidth: number) =>
    flux.layout!({ latentChannels, latentHeight, latentWidth } as Parameters<NonNullable<typeof flux.layout>>[0]);

  test("packs latents as diffusers does", () => {
    const reference = referenceOf("flux");
    for (const [plain, packed] of [
      ["latents", "latents_packed"],
      ["pipeline.dev.latents", "pipeline.dev.latents_packed"],
    ]) {
      const { dims, pack } = layoutOf(16, 8, 8);
      const out = new Float32Array(16 * 8 * 8);
      pack(floats(reference, plain), out);
      expect(dims).toEqual(reference.tensors.get(packed)!.shape.slice(1));
      expect(out).toEqual(floats(reference, packed));
    }
  });

  test("packs of any height and width unpack to what they were made of", () => {
    const side = fc.integer({ min: 1, max: 6 }).map((half) => 2 * half);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 4 }), side, side, (channels, height, width) => {
        const { dims, pack, unpack } = layoutOf(channels, height, width);
        const latents = Float32Array.from({ length: channels * height * width }, (_, i) => i);
        const [packed, again] = [new Float32Array(latents.length), new Float32Array(latents.length)];
        pack(latents, packed);
        unpack(packed, again);
        expect(dims).toEqual([(height * width) / 4, channels * 4]);
        expect(again).toEqual(latents);
        // A token is one square: its first channel has two neighbours in a row and those below them.
        expect([...packed.subarray(0, 4)]).toEqual([0, 1, width, width + 1]);
      }),
      { seed: 5, numRuns: 40 },
    );
  });

  test("wide pictures number their rows and columns", async () => {
    await using pipeline = await open(join(root, "flux/model"));
    const runs: ModelRun[] = [];
    const onModelRun = (run: ModelRun) => runs.push(structuredClone(run));
    const { width, height } = await pipeline.generate({ prompt: cat, steps: 1, width: 96, height: 32, onModelRun });
    expect([width, height]).toEqual([96, 32]);
    const { img_ids, txt_ids } = runs[0].inputs;
    const positions = [0, 1].flatMap((row) => Array.from({ length: 6 }, (_, column) => [0, row, column]));
    expect(img_ids.dims).toEqual([12, 3]);
    expect([...(img_ids.data as Float32Array)]).toEqual(positions.flat());
    expect(new Set(txt_ids.data as Float32Array)).toEqual(new Set([0]));
    await expect(pipeline.generate({ prompt: cat, width: 72, height: 64 })).rejects.toThrow(/multiple of 16/);
  });

  test("schnell's transformer has no input for guidance, and draws the same", async () => {
    // This model's guidance, as a constant of the graph.
    const folder = await withTransformer("flux", "schnell", ({ graph }) => {
      const input = graph.inputs.find(({ name }) => name === "guidance")!;
      graph.inputs.splice(graph.inputs.indexOf(input), 1);
      const constant = graph.addInitializer("fixed_guidance", Tensor.float32([1], Float32Array.of(3.5)));
      graph.replace(input, constant);
    });
    await cp(join(root, "flux/model/scheduler_schnell"), join(folder, "scheduler"), { recursive: true });
    await using pipeline = await open(folder);
    const reference = referenceOf("flux");
    const latents = floats(reference, "latents");
    const drawn = await pipeline.generate({ prompt: cat, steps: 4, width: 64, height: 64, latents });
    expect(relativeDifference(drawn.latents, floats(reference, "pipeline.schnell.latents"))).toBeLessThan(1e-4);
  });

  test("a graph of a fixed number of tokens draws a square of them, and refuses other sizes", async () => {
    const folder = await withTransformer("flux", "fixed", ({ graph }) => {
      const input = graph.inputs.find(({ name }) => name === "hidden_states")!;
      input.type = tensorType("float32", ["batch", 16, 64]);
    });
    await using pipeline = await open(folder);
    expect(pipeline.defaultSize).toEqual({ width: 64, height: 64 });
    const drawn = await pipeline.generate({ prompt: cat, steps: 1, seed: 1 });
    expect(drawn.width).toBe(64);
    const other = pipeline.generate({ prompt: cat, steps: 1, width: 64, height: 32 });
    await expect(other).rejects.toThrow(/picture of 16 tokens, got 4 x 2 = 8/);
  });
});

test("Sana without a text encoder says what to give in place of a prompt", async () => {
  await using pipeline = await open(join(root, "sana/model"));
  await expect(pipeline.generate({ prompt: cat, steps: 1, width: 32, height: 32 })).rejects.toThrow(/conditions/);
});
