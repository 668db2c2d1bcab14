import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { copyRest } from "./copied-files.ts";

const folder = temporaryFolder();

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

test("everything of the model is copied but the denoiser's graph with its weights, and what interrupted work left", async () => {
  const model = join(folder, "model");
  const names = ["unet/config.json", "vae_decoder/model.onnx", "LICENSE", "model_index.json"];
  const graph = ["unet/model.onnx", "unet/model.onnx_data", "unet/weights.pb"];
  const others = ["unet/.quad-session-1-0.onnx", "notes/own.txt"];
  for (const path of [...names, ...graph, ...others]) write(join(model, path), path);
  write(
    join(model, "model_index.json"),
    JSON.stringify({ _class_name: "StableDiffusionPipeline", unet: [], vae_decoder: [] }),
  );
  const out = join(folder, "copy");
  await copyRest(model, "unet", out);
  const files = readdirSync(out, { recursive: true, encoding: "utf8" }).filter((path) => /\.|LICENSE/.test(path));
  expect(files.sort()).toEqual([...names].sort());
});
