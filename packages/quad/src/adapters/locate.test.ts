import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { importAdapter } from "./import.ts";
import { failure, folder, layerOf, modules, q, ramp, type Spec, scaled, writeFileOf } from "./testing.ts";
import type { AdaptableModule } from "./types.ts";

const fc1 = "text_model.encoder.layers.0.mlp.fc1";
const encoder = (component: "text_encoder" | "text_encoder_2"): AdaptableModule => ({
  component,
  name: fc1,
  kind: "linear",
  inFeatures: 4,
  outFeatures: 4,
});
const all = [...modules, encoder("text_encoder"), encoder("text_encoder_2")];

async function writePart(path: string, module: string, config: object): Promise<void> {
  const specs: Spec[] = [
    [`base_model.model.${module}.lora_A.weight`, [2, 4]],
    [`base_model.model.${module}.lora_B.weight`, [4, 2]],
  ];
  await mkdir(path, { recursive: true });
  await writeFileOf(specs, undefined, join(path, "adapter_model.safetensors"));
  await writeFile(join(path, "adapter_config.json"), `\uFEFF${JSON.stringify(config)}`);
}

describe("PEFT folders named after components", () => {
  const path = join(folder, "trained");

  test("are one adapter, each part with its own configuration and among its component's layers", async () => {
    await writePart(join(path, "unet"), q, { r: 2, lora_alpha: 8 });
    await writePart(join(path, "text_encoder"), fc1, { r: 2, lora_alpha: 2 });
    await writePart(join(path, "text_encoder_2"), fc1, { r: 2, lora_alpha: 4 });
    const { name, layers, report } = await importAdapter(path, all);
    expect(name).toBe("trained");
    expect(layers.map(({ component, module, up }) => [component, module, up])).toEqual([
      ["unet", q, scaled(ramp(8), 4)],
      ["text_encoder", fc1, ramp(8)],
      ["text_encoder_2", fc1, scaled(ramp(8), 2)],
    ]);
    expect(report.matched.map(({ key }) => key.split("/")[0])).toEqual(
      ["unet", "text_encoder", "text_encoder_2"].flatMap((part) => [part, part]),
    );
    expect(report).toMatchObject({ unmatched: [], mismatched: [], warnings: [] });
  });

  test("one of them alone is an adapter of that component", async () => {
    const { layers } = await importAdapter(join(path, "text_encoder_2"), all);
    expect(layers.map(({ component }) => component)).toEqual(["text_encoder_2"]);
  });
});

test("an adapter_config.json beside other files than PEFT's own says nothing about them", async () => {
  const path = join(folder, "mixed");
  await writePart(path, q, { r: 2, lora_alpha: 64 });
  for (const name of ["style.safetensors", "pytorch_lora_weights.safetensors"]) {
    await cp(join(path, "adapter_model.safetensors"), join(path, name));
    expect(layerOf(await importAdapter(join(path, name), modules), q).up, name).toEqual(ramp(8));
  }
  expect(layerOf(await importAdapter(join(path, "adapter_model.safetensors"), modules), q).up[0]).toBe(ramp(1)[0] * 32);
});

test("a folder without any of these says what it would need", async () => {
  const path = join(folder, "other");
  await mkdir(join(path, "unet"), { recursive: true });
  expect(await failure(importAdapter(path, modules))).toMatch(/no complete adapter.*named after components.*got unet/);
});
