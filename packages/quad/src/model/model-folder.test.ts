import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { pocketFolder } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { openModelFolder, readScheduler } from "./model-folder.ts";
import { denoiserSlots, readSlots } from "./slots.ts";

const folder = temporaryFolder();

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

describe("a model folder", () => {
  test("has a denoiser, which comes first among what adapters can change, and its own files", async () => {
    const { denoiser, adaptable, entries, pipelineClass } = await openModelFolder(pocketFolder);
    expect([denoiser, ...adaptable]).toEqual(["unet", "unet", "text_encoder"]);
    expect(pipelineClass).toMatch(/StableDiffusion/);
    expect(entries).toEqual([...entries].sort());
    expect(entries).toContain("scheduler");
    for (const own of ["adapters", "samples"]) expect(entries).not.toContain(own);
  });

  test("that is none is refused with what is missing", async () => {
    await expect(openModelFolder(join(folder, "none"))).rejects.toThrow(/there is no such folder/);
    write(join(folder, "file"), "");
    await expect(openModelFolder(join(folder, "file"))).rejects.toThrow(/is a file, not a folder/);
    await expect(openModelFolder(folder)).rejects.toThrow(/there is no model_index\.json/);
    write(join(folder, "model_index.json"), '{"_class_name": 3}');
    await expect(openModelFolder(folder)).rejects.toThrow(/model_index\.json: _class_name: /);
    write(join(folder, "model_index.json"), '{"_class_name": "FluxPipeline"}');
    await expect(openModelFolder(folder)).rejects.toThrow(/neither unet\/model\.onnx nor transformer\/model\.onnx/);
    await expect(readScheduler(folder)).rejects.toThrow(/scheduler_config\.json: there is no such file/);
  });
});

describe("slots.json", () => {
  test("of a transformer is found too, and a file of another format is refused by its key", async () => {
    const slot = { name: "x", kind: "matmul", inFeatures: 2, outFeatures: 3 };
    const inputs = { inputA: "x.A", shapeA: [2, "rank"], inputB: "x.B", shapeB: ["rank", 3] };
    const slots = { strengthInput: "transformer.lora_strength", slots: [{ ...slot, ...inputs }] };
    const file = { format: "quad-slots", version: 1, rank: { kind: "dynamic" }, components: { transformer: slots } };
    write(join(folder, "slots.json"), JSON.stringify(file));
    expect(await denoiserSlots(folder)).toMatchObject({ component: "transformer", slots });
    write(join(folder, "slots.json"), JSON.stringify({ ...file, version: 9 }));
    await expect(readSlots(folder)).rejects.toThrow(/slots\.json: version: /);
  });
});
