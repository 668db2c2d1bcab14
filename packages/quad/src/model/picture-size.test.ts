import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { pocketFolder } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { defaultSize, pictureSize } from "./picture-size.ts";

describe("the size of a model's pictures", () => {
  test("is the one that its UNet was trained with", async () => {
    // Latents of 16 x 16, and an autoencoder of three resolutions: 2^2 pixels per latent.
    expect(await defaultSize(pocketFolder)).toEqual({ width: 64, height: 64 });
    expect(await pictureSize(pocketFolder)).toEqual({ width: 64, height: 64 });
  });

  test("is that of the configuration, height first where it has two", async () => {
    const folder = temporaryFolder();
    mkdirSync(join(folder, "unet"));
    // Copies: links that lead out of a folder are refused.
    cpSync(join(pocketFolder, "unet/model.onnx"), join(folder, "unet/model.onnx"));
    cpSync(join(pocketFolder, "vae_decoder"), join(folder, "vae_decoder"), { recursive: true });
    writeFileSync(join(folder, "unet/config.json"), JSON.stringify({ sample_size: [8, 12] }));
    expect(await defaultSize(folder)).toEqual({ width: 48, height: 32 });
  });

  test("may be another that the autoencoder divides", async () => {
    expect(await pictureSize(pocketFolder, [32, 48])).toEqual({ width: 48, height: 32 });
    await expect(pictureSize(pocketFolder, [32, 50])).rejects.toThrow(/multiples of 4.*32x50/);
  });
});
