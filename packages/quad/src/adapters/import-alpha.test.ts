import { describe, expect, test } from "vitest";
import { block, failure, flatQ, importSpecs, layerOf, q, ramp, type Spec, scaled } from "./testing.ts";

const alpha = (key: string, value = 1): Spec => [key, [], Float32Array.of(value)];

describe("an alpha in the file's metadata", () => {
  const specs: Spec[] = [
    [`unet.${q}.lora_A.weight`, [2, 4]],
    [`unet.${q}.lora_B.weight`, [4, 2]],
  ];

  test.each<[string, Record<string, string>, number]>([
    ["lora_alpha, with a rank", { lora_alpha: "8", r: "2" }, 4],
    ["alpha", { alpha: "8.0" }, 4],
    ["network_alpha", { network_alpha: "1" }, 0.5],
    ["diffusers' own", { lora_adapter_metadata: JSON.stringify({ "unet.r": 2, "unet.lora_alpha": 8 }) }, 4],
    ["diffusers' own for all components", { lora_adapter_metadata: JSON.stringify({ r: 2, lora_alpha: 8 }) }, 4],
    ["the word None", { network_alpha: "None" }, 1],
    ["kohya's notes, which are no instruction", { ss_network_alpha: "8", ss_network_dim: "2" }, 1],
  ])("%s", async (_, metadata, scale) => {
    const { layers, report } = await importSpecs(specs, { metadata });
    expect(layers[0].up).toEqual(scaled(ramp(8), scale));
    expect(report.warnings).toEqual([]);
  });

  test("one beside the weights counts before it", async () => {
    const { layers } = await importSpecs([...specs, alpha(`unet.${q}.alpha`, 1)], { metadata: { alpha: "64" } });
    expect(layers[0].up).toEqual(scaled(ramp(8), 0.5));
  });

  test("one that is not a number is refused", async () => {
    expect(await failure(importSpecs(specs, { metadata: { lora_alpha: "much" } }))).toMatch(
      /lora_alpha: .*not a number.*"much"/,
    );
  });

  test("kohya's layers without an alpha keep strength 1, and are told", async () => {
    const kohya: Spec[] = [
      [`${flatQ}.lora_down.weight`, [2, 4]],
      [`${flatQ}.lora_up.weight`, [4, 2]],
    ];
    const { layers, report } = await importSpecs(kohya, { metadata: { network_alpha: "8" } });
    expect(layers[0].up).toEqual(ramp(8));
    expect(report.warnings).toEqual([expect.stringMatching(/network_alpha of 8 is not used.*strength 1/)]);
  });
});

describe("an alpha beside the weights", () => {
  const attention = `unet.${block}.attn1`;
  const specs: Spec[] = [
    [`${attention}.processor.to_q_lora.down.weight`, [2, 4]],
    [`${attention}.processor.to_q_lora.up.weight`, [4, 2]],
  ];

  test.each([
    "processor.to_q_lora.alpha",
    "to_q_lora.alpha",
    "to_q.alpha",
    "processor.to_q_lora.down.weight.alpha",
    "to_q.lora.alpha",
  ])("is placed when its name is %s", async (name) => {
    const { layers, report } = await importSpecs([...specs, alpha(`${attention}.${name}`)]);
    expect(layers[0].up).toEqual(scaled(ramp(8), 0.5));
    expect(report).toMatchObject({ unmatched: [], warnings: [] });
  });

  test("is placed when it calls the layer by another convention's name", async () => {
    const { layers } = await importSpecs([...specs, alpha(`${flatQ}.alpha`)]);
    expect(layers[0].up).toEqual(scaled(ramp(8), 0.5));
  });

  test("that belongs to no layer is told, with the strength that layers run at", async () => {
    const { layers, report } = await importSpecs([...specs, alpha(`${attention}.to_v.alpha`)]);
    expect(layerOf({ layers } as never, q).up).toEqual(ramp(8));
    expect(report.unmatched).toEqual([
      { key: `${attention}.to_v.alpha`, reason: expect.stringMatching(/alpha without/) },
    ]);
    expect(report.warnings).toEqual([expect.stringMatching(/belongs to no layer.*1 \(alpha = rank\)/)]);
  });
});

describe("an adapter that changes nothing is told", () => {
  const up = (values: Float32Array): Spec => [`${flatQ}.lora_up.weight`, [4, 2], values];
  const down: Spec = [`${flatQ}.lora_down.weight`, [2, 4]];
  const warnings = async (...specs: Spec[]) => (await importSpecs(specs)).report.warnings;
  const told = [expect.stringMatching(/every layer's product is zero/)];

  test("where one factor is zero, the alpha is, or they have no rank in common", async () => {
    expect(await warnings(down, up(new Float32Array(8)))).toEqual(told);
    expect(await warnings(down, up(ramp(8)), alpha(`${flatQ}.alpha`, 0))).toEqual(told);
    const firstRank = Float32Array.of(1, 2, 3, 4, 0, 0, 0, 0);
    const secondRank = Float32Array.of(0, 1, 0, 2, 0, 3, 0, 4);
    expect(await warnings([`${flatQ}.lora_down.weight`, [2, 4], firstRank], up(secondRank))).toEqual(told);
  });

  test("but not where a single layer has an effect", async () => {
    const other: Spec[] = [
      ["lora_unet_conv_in.lora_down.weight", [1, 2, 3, 3]],
      ["lora_unet_conv_in.lora_up.weight", [3, 1, 1, 1]],
    ];
    expect(await warnings(down, up(new Float32Array(8)), ...other)).toEqual([]);
  });
});
