import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { writeSafetensors } from "../files/safetensors.ts";
import { importAdapter } from "./import.ts";
import { failure, flatQ, folder, importSpecs, modules, q, ramp, reported, type Spec, writeFileOf } from "./testing.ts";

describe("what is not read", () => {
  const good: Spec[] = [
    [`${flatQ}.lora_down.weight`, [2, 4]],
    [`${flatQ}.lora_up.weight`, [4, 2]],
  ];

  test("unsupported and foreign keys are reported with reasons, each once", async () => {
    const others: [string, RegExp][] = [
      ["lora_unet_conv_in.diff", /weight difference/],
      ["lora_unet_conv_in.diff_b", /bias/],
      ["lora_unet_norm.w_norm", /normalization/],
      ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", /text_encoder/],
      ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", /text_encoder/],
      ["lora_unet_elsewhere.lora_down.weight", /no module of the name elsewhere/],
      ["lora_unet_conv_in.alpha", /alpha without/],
    ];
    const adapter = await importSpecs([...good, ...others.map(([key]): Spec => [key, [1]])]);
    expect(reported(adapter)).toEqual([...good, ...others].map(([key]) => key).sort());
    for (const [key, reason] of others)
      expect(adapter.report.unmatched.find((entry) => entry.key === key)?.reason).toMatch(reason);
  });

  test("two adapters for one module: the second is a mismatch", async () => {
    const adapter = await importSpecs([
      ...good,
      [`unet.${q}.lora_A.weight`, [1, 4]],
      [`unet.${q}.lora_B.weight`, [4, 1]],
    ]);
    expect(adapter.layers).toHaveLength(1);
    expect(adapter.report.mismatched.map(({ key }) => key)).toEqual([
      `unet.${q}.lora_A.weight`,
      `unet.${q}.lora_B.weight`,
    ]);
    const twice = await importSpecs([
      [`base_model.model.${q}.lora_A.one.weight`, [1, 4]],
      [`base_model.model.${q}.lora_B.one.weight`, [4, 1]],
      [`base_model.model.${q}.lora_A.two.weight`, [1, 4]],
    ]);
    expect(twice.report.mismatched).toMatchObject([{ expected: "one down tensor" }]);
  });

  test.each([
    ["OFT", "lora_unet_conv_in.oft_blocks"],
    ["LoRA-XS", `${flatQ}.default_lora_latent_mapping.weight`],
    ["DoRA", `${flatQ}.dora_scale`],
  ])("%s is refused by name, file and key", async (method, key) => {
    const message = await failure(importSpecs([...good, [key, [1]]]));
    expect(message).toMatch(new RegExp(`adapter-\\d+\\.safetensors: ${key}: ${method} adapters are not supported`));
  });

  test.each<[string, Spec[], string]>([
    ["NaN", [[good[0][0], [2, 4], ramp(8).fill(Number.NaN, 5, 6)], good[1]], "lora_down"],
    ["infinity", [good[0], [good[1][0], [4, 2], ramp(8).fill(Number.POSITIVE_INFINITY, 7)]], "lora_up"],
    ["F16 overflow", [good[0], [good[1][0], [4, 2], ramp(8).fill(70000), "F16"]], "lora_up"],
    [
      "overflow by the scale",
      [good[0], [good[1][0], [4, 2], ramp(8).fill(3e38)], [`${flatQ}.alpha`, [], Float32Array.of(4)]],
      "lora_up",
    ],
    ["an infinite alpha", [...good, [`${flatQ}.alpha`, [], Float32Array.of(Number.POSITIVE_INFINITY)]], "alpha"],
  ])("%s names the key", async (_, specs, part) => {
    expect(await failure(importSpecs(specs))).toMatch(new RegExp(`${flatQ}\\.${part}.*not finite`));
  });

  test("integers in place of weights are refused: their scales are nowhere", async () => {
    const path = join(folder, "codes.safetensors");
    await writeSafetensors(path, [
      { name: good[0][0], dtype: "I8", shape: [2, 4], data: new Int8Array(8) },
      { name: good[1][0], dtype: "F32", shape: [4, 2], data: ramp(8) },
    ]);
    expect(await failure(importAdapter(path, modules))).toMatch(/codes\.safetensors: .*lora_down.*integers.*got I8/);
  });

  test("overflow in composing a Tucker convolution names its core", async () => {
    const message = await failure(
      importSpecs([
        ["lora_unet_conv_in.lora_down.weight", [1, 2], ramp(2).fill(3e38)],
        ["lora_unet_conv_in.lora_mid.weight", [1, 1, 3, 3], ramp(9).fill(10)],
        ["lora_unet_conv_in.lora_up.weight", [3, 1, 1, 1]],
      ]),
    );
    expect(message).toMatch(/conv_in\.lora_mid\.weight.*not finite/);
  });

  test("a file where nothing fits shows what it has and what the model has", async () => {
    const message = await failure(importSpecs([["model.layers.0.weight", [1]]]));
    expect(message).toContain("model.layers.0.weight");
    expect(message).toContain(q);
    expect(message).toMatch(/Check that/);
    expect(await failure(importSpecs([]))).toMatch(/without tensors/);
    expect(await failure(importSpecs([["a.lora_A.weight", [1]]], { of: [] }))).toMatch(/no adaptable ones/);
  });

  test("paths that are not an adapter", async () => {
    expect(await failure(importAdapter(join(folder, "missing"), modules))).toMatch(/does not exist/);
    const empty = join(folder, "empty");
    await mkdir(empty);
    expect(await failure(importAdapter(empty, modules))).toMatch(/no complete adapter.*empty folder/);
    await writeFileOf(good, undefined, join(empty, "adapter_model.safetensors"));
    expect(await failure(importAdapter(empty, modules))).toMatch(/expected adapter_config\.json/);
    await writeFile(join(folder, "old.ckpt"), "x");
    expect(await failure(importAdapter(join(folder, "old.ckpt"), modules))).toMatch(/pickled/);
  });
});

test("random keys: a report of each, or an InputError", async () => {
  const piece = fc.constantFrom(
    "lora_unet_",
    "unet.",
    "base_model.model.",
    "lycoris_",
    "conv_in",
    q,
    flatQ,
    "norm",
    ".",
    "_",
  );
  const suffix = fc.constantFrom(
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_mid.weight",
    ".alpha",
    ".lora_A.weight",
    ".lora_B.weight",
    ".diff",
    "",
    "_lora.up.weight",
    ".processor.to_q_lora.down.weight",
  );
  const key = fc.tuple(fc.array(piece, { maxLength: 3 }), suffix).map(([pieces, end]) => pieces.join("") + end);
  const shape = fc.constantFrom<number[]>([], [2, 4], [4, 2], [1, 2, 3, 3], [3, 1, 1, 1], [0]);
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(fc.tuple(key, shape), { selector: ([name]) => name, maxLength: 8 }),
      async (specs) => {
        const path = await writeFileOf(
          specs.map(([name, size]): Spec => [name, size]),
          undefined,
          join(folder, "random.safetensors"),
        );
        try {
          const adapter = await importAdapter(path, modules);
          expect(reported(adapter)).toEqual(specs.map(([name]) => name).sort());
        } catch (error) {
          expect(error).toBeInstanceOf(InputError);
        }
      },
    ),
    { seed: 3, numRuns: 100 },
  );
});
