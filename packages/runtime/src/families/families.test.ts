import { readFileSync } from "node:fs";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import type { FolderFiles } from "../files.ts";
import { chooseFamily, denoiserFolder, families, readModelIndex } from "./index.ts";
import { guidanceEmbedding } from "./latent-consistency.ts";

/** A folder of which only the names and the index matter. */
function folder(index: object | null, graphs: readonly string[] = ["unet"]): FolderFiles {
  const texts = new Map(graphs.map((name) => [`${name}/model.onnx`, ""]));
  if (index) texts.set("model_index.json", JSON.stringify(index));
  return {
    exists: async (path) => texts.has(path),
    read: async (path) => new TextEncoder().encode(texts.get(path)),
    list: async () => [],
    describe: (path) => `folder/${path}`,
  };
}

const plain = ["sample", "timestep", "encoder_hidden_states"];
const sizes = ["text_embeds", "time_ids"];
const residuals = ["down_block_additional_residuals_0", "mid_block_additional_residual"];
const adapters = ["quad.strength", "to_q.lora_A"];

async function familyOf(pipelineClass: string | null, inputs: readonly string[], graph = "unet") {
  const files = folder(pipelineClass === null ? null : { _class_name: pipelineClass }, [graph]);
  const { candidates } = await readModelIndex(files);
  const denoiser = await denoiserFolder(files, candidates);
  return chooseFamily(candidates, denoiser, inputs, "graph").name;
}

describe("a model's family", () => {
  test.each([
    ["StableDiffusionPipeline", plain, "Stable Diffusion"],
    ["OnnxStableDiffusionPipeline", plain, "Stable Diffusion"],
    ["StableDiffusionInpaintPipeline", [...plain, ...adapters], "Stable Diffusion"],
    ["StableDiffusionXLPipeline", [...plain, ...sizes], "Stable Diffusion XL"],
    ["ORTStableDiffusionXLInpaintPipeline", [...plain, ...sizes], "Stable Diffusion XL"],
    ["LatentConsistencyModelPipeline", [...plain, "timestep_cond"], "Latent Consistency Model"],
    ["StableDiffusionInstructPix2PixPipeline", plain, "InstructPix2Pix"],
    ["StableDiffusionControlNetPipeline", [...plain, ...residuals], "ControlNet"],
    ["StableDiffusionXLControlNetPipeline", [...plain, ...sizes, ...residuals], "ControlNet XL"],
  ])("is that of its class: %s", async (pipelineClass, inputs, name) => {
    expect(await familyOf(pipelineClass, inputs)).toBe(name);
  });

  test.each([
    ["StableDiffusionPipeline", [...plain, "timestep_cond"], "Latent Consistency Model"],
    ["StableDiffusionXLPipeline", [...plain, ...sizes, "timestep_cond"], "Latent Consistency Model XL"],
    ["StableDiffusionPipeline", [...plain, ...residuals], "ControlNet"],
    [null, [...plain, ...adapters], "Stable Diffusion"],
    [null, [...plain, ...sizes], "Stable Diffusion XL"],
  ])("is told from others of its class by the denoiser's inputs: %s, %s", async (pipelineClass, inputs, name) => {
    expect(await familyOf(pipelineClass, inputs)).toBe(name);
  });

  test("needs inputs that the graph has", async () => {
    await expect(familyOf("StableDiffusionXLPipeline", plain)).rejects.toThrow(
      /graph: .*not that of Stable Diffusion XL.* \(expected the inputs text_embeds, time_ids/,
    );
    await expect(familyOf("StableDiffusionControlNetPipeline", plain)).rejects.toThrow(/mid_block_additional_residual/);
  });

  test("that is not supported is refused by its class, with those that are", async () => {
    const opening = readModelIndex(folder({ _class_name: "StableCascadeCombinedPipeline" }));
    await expect(opening).rejects.toThrow(
      /model_index\.json: _class_name: .*StableDiffusionPipeline.*FluxPipeline.*got StableCascadeCombinedPipeline/,
    );
  });
});

test("every family can be chosen by its first class and the inputs that it requires", () => {
  for (const family of families) {
    const candidates = families.filter(({ pipelineClasses }) => pipelineClasses.includes(family.pipelineClasses[0]));
    const chosen = chooseFamily(candidates, family.denoiser, [...plain, ...family.requires], "graph");
    expect(chosen.name).toBe(family.name);
  }
});

test("guidance is embedded as diffusers embeds it, and an odd width ends in a zero", () => {
  const path = new URL("../../../../test/families/lcm/reference.safetensors", import.meta.url);
  const expected = toFloat32(parseSafetensors(readFileSync(path), "lcm").tensors.get("timestep_cond.8.5")!);
  const embedding = guidanceEmbedding(8.5 - 1, 32);
  expect(embedding.length).toBe(expected.length);
  // Angles of up to 7500 radians have an error of 2^-12 in single precision.
  for (const [i, value] of expected.entries()) expect(Math.abs(embedding[i] - value)).toBeLessThan(3e-4);
  const odd = guidanceEmbedding(7.5, 33);
  expect([...odd.subarray(0, 32)]).toEqual([...embedding]);
  expect(odd[32]).toBe(0);
});
