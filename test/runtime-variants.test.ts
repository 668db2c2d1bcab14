import { fileURLToPath } from "node:url";
import { openPipeline, type Pipeline } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles, readImage } from "quad-lora";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { pocketFolder } from "./helpers/exposed-pocket.ts";
import { psnr, relativeDifference } from "./helpers/pictures.ts";
import { pocketVariant } from "./helpers/pocket-variants.ts";

const images = new URL("reference/pocket/images/", import.meta.url);
const request = { prompt: "crab animal marine", steps: 8, guidance: 3, seed: 1 };

describe("graphs of other shapes make the same pictures", () => {
  let plain: Pipeline;
  beforeAll(async () => {
    plain = await openPipeline({ ort, files: folderFiles(pocketFolder) });
  });
  afterAll(() => plain.dispose());

  test("external data, mapped from a path and handed over as bytes", async () => {
    const files = folderFiles(await pocketVariant("external data"));
    expect(await files.exists("unet/model.onnx_data")).toBe(true);
    const { localPath, ...bytesOnly } = files;
    for (const source of [files, bytesOnly]) {
      const pipeline = await openPipeline({ ort, files: source });
      expect((await pipeline.generate(request)).latents).toEqual((await plain.generate(request)).latents);
      await pipeline.dispose();
    }
  });

  test("batch 1, fixed sizes and a floating-point time step", async () => {
    const pipeline = await openPipeline({ ort, files: folderFiles(await pocketVariant("fixed sizes")) });
    for (const guidance of [1, 3]) {
      const { latents } = await pipeline.generate({ ...request, guidance });
      const expected = await plain.generate({ ...request, guidance });
      expect(relativeDifference(latents, expected.latents)).toBeLessThan(1e-4);
    }
    await expect(pipeline.generate({ ...request, width: 128 })).rejects.toThrow(
      /width does not fit.*expected 64, got 128/,
    );
    await pipeline.dispose();
  });

  test("float16 inputs and outputs, int32 tokens", async () => {
    const pipeline = await openPipeline({ ort, files: folderFiles(await pocketVariant("float16")) });
    const { data } = await pipeline.generate(request);
    // Eleven bits of mantissa, rounded at every step.
    expect(psnr(data, (await plain.generate(request)).data)).toBeGreaterThan(40);
    await pipeline.dispose();
  });

  const picture = async (name: string) => readImage(fileURLToPath(new URL(`${name}.png`, images)));

  test("4 channels: text-to-image, and an image is a start", async () => {
    const pipeline = await openPipeline({ ort, files: folderFiles(await pocketVariant("4 channels")) });
    for (const guidance of [1, 3]) {
      const { latents } = await pipeline.generate({ ...request, guidance });
      const expected = await plain.generate({ ...request, guidance });
      expect(relativeDifference(latents, expected.latents)).toBeLessThan(1e-4);
    }
    const image = await picture("source-crab");
    const seen: number[] = [];
    const started = await pipeline.generate({ ...request, image, onStep: ({ steps }) => seen.push(steps) });
    expect(seen).toEqual([6, 6, 6, 6, 6, 6]);
    expect(started.latents).toEqual((await pipeline.generate({ ...request, image, denoise: 0.8 })).latents);
    const mask = { width: 64, height: 64, data: new Uint8Array(64 * 64) };
    await expect(pipeline.generate({ ...request, image, mask })).rejects.toThrow(/cannot inpaint/);
    await pipeline.dispose();
  });

  test("8 channels: unscaled image latents behind the noisy ones", async () => {
    const pipeline = await openPipeline({ ort, files: folderFiles(await pocketVariant("8 channels")) });
    const image = await picture("sketch-input-crab");
    const { latents } = await pipeline.generate({ ...request, image });
    expect(relativeDifference(latents, (await plain.generate({ ...request, image })).latents)).toBeLessThan(1e-4);
    await expect(pipeline.generate(request)).rejects.toThrow(/it needs one/);
    await pipeline.dispose();
  });
});
