import { mkdtemp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { importAdapter } from "./import.ts";
import {
  block,
  failure,
  flatQ,
  folder,
  importSpecs,
  layerOf,
  modules,
  q,
  ramp,
  type Spec,
  scaled,
  writeFileOf,
} from "./testing.ts";
import type { ImportedAdapter } from "./types.ts";

describe("PEFT configurations", () => {
  const specs: Spec[] = ["to_q", "to_k", "to_v"].flatMap((name): Spec[] => [
    [`base_model.model.${block}.attn1.${name}.lora_A.weight`, [name === "to_k" ? 4 : 2, 4]],
    [
      `base_model.model.${block}.attn1.${name}.lora_B.weight`,
      name === "to_v" ? [6, 2] : name === "to_k" ? [4, 4] : [4, 2],
    ],
  ]);
  const write = async (config: unknown, tensors = specs) => {
    const path = await mkdtemp(join(folder, "peft-"));
    await writeFileOf(tensors, undefined, join(path, "adapter_model.safetensors"));
    await writeFile(join(path, "adapter_config.json"), typeof config === "string" ? config : JSON.stringify(config));
    return path;
  };
  const scales = (adapter: ImportedAdapter) =>
    Object.fromEntries(
      ["to_q", "to_k", "to_v"].map((name) => {
        const { up } = layerOf(adapter, `${block}.attn1.${name}`);
        return [name, up[0] / ramp(1)[0]];
      }),
    );

  test("alpha, rank and their patterns", async () => {
    const path = await write({
      peft_type: "LORA",
      r: 2,
      lora_alpha: 8,
      rank_pattern: { to_k: 4 },
      alpha_pattern: { "attn1\\.to_[kx]": 6, "to_.": 1 },
    });
    expect(scales(await importAdapter(path, modules))).toEqual({ to_q: 0.5, to_k: 1.5, to_v: 0.5 });
    const file = await importAdapter(join(path, "adapter_model.safetensors"), modules);
    expect(scales(file)).toEqual({ to_q: 0.5, to_k: 1.5, to_v: 0.5 });
    expect(file.name).toBe(path.split("/").at(-1));
  });

  test("a pattern fits whole path segments from the end only", async () => {
    const path = await write({
      r: 2,
      lora_alpha: 2,
      rank_pattern: { to_k: 4 },
      alpha_pattern: { o_q: 64, attn1: 64, to_k: 4 },
    });
    expect(scales(await importAdapter(path, modules))).toEqual({ to_q: 1, to_k: 1, to_v: 1 });
  });

  test("rank-stabilised scaling divides by the root of the rank", async () => {
    const path = await write({ r: 2, lora_alpha: 8, rank_pattern: { to_k: 4 }, use_rslora: true });
    const { to_q, to_k } = scales(await importAdapter(path, modules));
    expect(to_k).toBe(4);
    expect(to_q).toBeCloseTo(8 / Math.SQRT2, 5);
  });

  test("a rank that contradicts the configuration is a mismatch", async () => {
    const { report, layers } = await importAdapter(await write({ r: 2, lora_alpha: 2 }), modules);
    expect(layers.length).toBe(2);
    expect(report.mismatched).toHaveLength(2);
    expect(report.mismatched[0]).toMatchObject({ expected: expect.stringMatching(/rank 2/), got: "rank 4" });
  });

  test.each([
    ["no JSON", "{", /not valid JSON/],
    ["a rank of zero", { r: 0 }, /adapter_config\.json: r: /],
    ["another method", { peft_type: "VERA" }, /VERA adapters are not supported/],
    ["DoRA", { use_dora: true }, /DoRA/],
    ["PiSSA", { r: 2, init_lora_weights: "pissa_niter_4" }, /pissa_niter_4 trains against changed base weights/],
    ["a broken pattern", { r: 2, rank_pattern: { "to_(": 4 } }, /not a regular expression/],
  ])("%s is refused", async (_, config, message) => {
    expect(await failure(write(config).then((path) => importAdapter(path, modules)))).toMatch(message);
  });

  test("diffusers' metadata gives the scale by component", async () => {
    const tensors: Spec[] = [
      [`unet.${q}.lora_A.weight`, [2, 4]],
      [`unet.${q}.lora_B.weight`, [4, 2]],
    ];
    const metadata = (members: object) => ({ metadata: { lora_adapter_metadata: JSON.stringify(members) } });
    const adapter = await importSpecs(tensors, metadata({ "unet.r": 2, "unet.lora_alpha": 8, "text_encoder.r": 4 }));
    expect(layerOf(adapter, q).up).toEqual(scaled(ramp(8), 4));
    expect(await failure(importSpecs(tensors, { metadata: { lora_adapter_metadata: "?" } }))).toMatch(/not JSON/);
  });

  test("other formats in the same file take nothing from it", async () => {
    const convolution: Spec[] = [
      ["unet.conv_in.lora.down.weight", [1, 2, 3, 3]],
      ["unet.conv_in.lora.up.weight", [3, 1, 1, 1]],
    ];
    const path = await write({ r: 2, lora_alpha: 4, rank_pattern: { to_k: 4 } }, [...specs, ...convolution]);
    const adapter = await importAdapter(path, modules);
    expect(adapter.format).toBe("peft");
    expect(scales(adapter)).toEqual({ to_q: 2, to_k: 1, to_v: 2 });
    expect(layerOf(adapter, "conv_in").up).toEqual(ramp(3));
  });

  test("kohya files take nothing from a configuration beside them", async () => {
    const path = await write({ r: 2, lora_alpha: 64 });
    const kohya = join(path, "other.safetensors");
    await writeFileOf(
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [`${flatQ}.lora_up.weight`, [4, 2]],
      ],
      undefined,
      kohya,
    );
    expect(layerOf(await importAdapter(kohya, modules), q).up).toEqual(ramp(8));
  });
});
