import { join } from "node:path";
import { checkModel } from "@quad-lora/onnx";
import { exposeGraph, findLayers, importAdapter, toModule, writeSafetensors } from "quad-lora";
import { expect, test } from "vitest";
import { temporaryFolder } from "./helpers/models.ts";
import { kohyaLayers, kohyaTensors, loadSd15Graph } from "./helpers/sd15.ts";

const folder = temporaryFolder();

test("a kohya LoRA for Stable Diffusion 1.5 fits the real UNet graph entirely, and the graph is exposed", async () => {
  const model = loadSd15Graph();
  checkModel(model);
  const { layers, skipped } = findLayers(model);
  expect(skipped).toEqual([]);
  // 16 transformer blocks of 12 layers; 22 residual blocks of 3, 14 of them with a shortcut; 2 + 3 + 3 other layers.
  expect(layers.filter(({ name }) => /attentions/.test(name))).toHaveLength(16 * 12);
  expect(layers.filter(({ name }) => /resnets/.test(name))).toHaveLength(22 * 3 + 14);
  expect(layers).toHaveLength(16 * 12 + 22 * 3 + 14 + 2 + 2 + 3 + 3);
  expect(new Set(layers.map(({ name }) => name)).size).toBe(layers.length);
  expect(layers.every(({ calls }) => calls.length === 1)).toBe(true);

  const path = join(folder, "kohya.safetensors");
  const kohya = kohyaLayers();
  await writeSafetensors(path, kohyaTensors(kohya), { ss_network_dim: "4", ss_network_alpha: "2" });
  const modules = layers.map((layer) => toModule("unet", layer));
  const adapter = await importAdapter(path, modules, { name: "kohya" });
  expect(adapter.report.unmatched).toEqual([]);
  expect(adapter.report.mismatched).toEqual([]);
  expect(adapter.report.matched).toHaveLength(3 * kohya.length);
  for (const { key, module } of adapter.report.matched) {
    expect(`lora_unet_${module.replaceAll(".", "_")}`).toBe(key.split(".")[0]);
  }

  const used = new Set(adapter.layers.map(({ module }) => module));
  const before = model.graph.outputs.map(({ name }) => name);
  const { slots } = exposeGraph(
    model,
    "unet",
    layers.filter(({ name }) => used.has(name)),
    { kind: "dynamic" },
  );
  checkModel(model);
  expect(slots).toHaveLength(kohya.length);
  expect(model.graph.outputs.map(({ name }) => name)).toEqual(before);
});
