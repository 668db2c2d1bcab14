import { describe, expect, test } from "vitest";
import { block, failure, flatQ, importSpecs, layerOf, q, ramp, type Spec } from "./testing.ts";
import type { AdaptableModule } from "./types.ts";

describe("shapes", () => {
  test("1x1 convolutions and linear layers stand for each other", async () => {
    const [projIn, projOut] = [
      "lora_unet_down_blocks_0_attentions_0_proj_in",
      "lora_unet_down_blocks_0_attentions_0_proj_out",
    ];
    const adapter = await importSpecs([
      [`${projIn}.lora_down.weight`, [2, 3]],
      [`${projIn}.lora_up.weight`, [4, 2]],
      [`${projOut}.lora_down.weight`, [2, 4, 1, 1]],
      [`${projOut}.lora_up.weight`, [3, 2, 1, 1]],
    ]);
    expect(adapter.report.mismatched).toEqual([]);
    expect(layerOf(adapter, "down_blocks.0.attentions.0.proj_out")).toMatchObject({ down: ramp(8), up: ramp(6) });
  });

  test("a Tucker convolution acts as its three layers in a row", async () => {
    const [down, mid, up] = [ramp(4), ramp(3 * 2 * 9, 2), ramp(9, 3)];
    const adapter = await importSpecs([
      ["lora_unet_conv_in.lora_down.weight", [2, 2, 1, 1], down],
      ["lora_unet_conv_in.lora_mid.weight", [3, 2, 3, 3], mid],
      ["lora_unet_conv_in.lora_up.weight", [3, 3, 1, 1], up],
      ["lora_unet_conv_in.alpha", [], Float32Array.of(1)],
    ]);
    const layer = layerOf(adapter, "conv_in");
    expect(layer.rank).toBe(3);
    // One output pixel of the 3x3 convolution over an image of 2 channels, layer by layer.
    const image = ramp(2 * 9, 5);
    const reduced = Array.from({ length: 2 * 9 }, (_, i) => {
      const [j, p] = [Math.floor(i / 9), i % 9];
      return down[j * 2] * image[p] + down[j * 2 + 1] * image[9 + p];
    });
    const sumOf = (length: number, term: (i: number) => number) =>
      Array.from({ length }, (_, i) => term(i)).reduce((a, b) => a + b, 0);
    const core = [0, 1, 2].map((i) => sumOf(18, (n) => mid[i * 18 + n] * reduced[n]));
    const expected = [0, 1, 2].map((o) => 0.5 * sumOf(3, (i) => up[o * 3 + i] * core[i]));
    const inner = [0, 1, 2].map((i) => sumOf(18, (n) => layer.down[i * 18 + n] * image[n]));
    expect([0, 1, 2].map((o) => sumOf(3, (i) => layer.up[o * 3 + i] * inner[i]))).toEqual(expected);
  });

  test("a fused projection is split: rows of up, one down for all", async () => {
    const name = `lora_unet_${block.replaceAll(".", "_")}_attn1_to_qkv`;
    const up = ramp(14 * 2);
    const adapter = await importSpecs([
      [`${name}.lora_down.weight`, [2, 4]],
      [`${name}.lora_up.weight`, [14, 2], up],
    ]);
    const [first, second, third] = adapter.layers;
    expect(adapter.layers.map(({ module }) => module.split(".").at(-1))).toEqual(["to_q", "to_k", "to_v"]);
    expect([first!.up, second!.up, third!.up]).toEqual([up.slice(0, 8), up.slice(8, 16), up.slice(16)]);
    expect(second!.down).toBe(first!.down);
    expect(adapter.report.matched[0].module).toBe(
      ["to_q", "to_k", "to_v"].map((n) => `${block}.attn1.${n}`).join(" + "),
    );
  });

  test("separate projections of a fused one are merged block by block", async () => {
    const fused: AdaptableModule[] = [
      { component: "transformer", name: "b.to_qkv", kind: "linear", inFeatures: 3, outFeatures: 6 },
    ];
    const parts = (names: string[]) =>
      names.flatMap((name, i): Spec[] => [
        [`transformer.b.${name}.lora_A.weight`, [i + 1, 3]],
        [`transformer.b.${name}.lora_B.weight`, [2, i + 1], ramp(2 * (i + 1), i)],
      ]);
    const all = await importSpecs(parts(["to_v", "to_q", "to_k"]), { of: fused });
    const layer = layerOf(all, "b.to_qkv");
    expect(layer.rank).toBe(6);
    const delta = ({ up, down, rank }: typeof layer) =>
      Array.from({ length: 18 }, (_, n) => {
        const [o, c] = [Math.floor(n / 3), n % 3];
        return Array.from({ length: rank }, (_, r) => up[o * rank + r] * down[r * 3 + c]).reduce((a, b) => a + b, 0);
      });
    const own = (rank: number, i: number) =>
      Array.from({ length: 6 }, (_, n) => {
        const [o, c] = [Math.floor(n / 3), n % 3];
        return Array.from(
          { length: rank },
          (_, r) => ramp(2 * rank, i)[o * rank + r] * ramp(rank * 3)[r * 3 + c],
        ).reduce((a, b) => a + b, 0);
      });
    expect(delta(layer)).toEqual([...own(2, 1), ...own(3, 2), ...own(1, 0)]);
    const onlyValues = layerOf(await importSpecs(parts(["to_v"]), { of: fused }), "b.to_qkv");
    expect(delta(onlyValues)).toEqual([...new Array(12).fill(0), ...own(1, 0)]);
  });

  test("a module is adapted once, whole or in parts", async () => {
    const fused: AdaptableModule[] = [
      { component: "transformer", name: "b.to_qkv", kind: "linear", inFeatures: 3, outFeatures: 6 },
    ];
    const pair = (name: string, outputs: number): Spec[] => [
      [`transformer.b.${name}.lora_A.weight`, [1, 3]],
      [`transformer.b.${name}.lora_B.weight`, [outputs, 1]],
    ];
    const wholeFirst = await importSpecs([...pair("to_qkv", 6), ...pair("to_q", 2)], { of: fused });
    expect(wholeFirst.report.mismatched.map(({ key }) => key)).toEqual(pair("to_q", 2).map(([key]) => key));
    const partFirst = await importSpecs([...pair("to_q", 2), ...pair("to_k", 2), ...pair("to_qkv", 6)], { of: fused });
    expect(partFirst.report.mismatched.map(({ key }) => key)).toEqual(pair("to_qkv", 6).map(([key]) => key));
    expect(partFirst.layers).toMatchObject([{ module: "b.to_qkv", rank: 2 }]);
    expect(await failure(importSpecs(pair("to_q", 3), { of: fused }))).toMatch(
      /expected 2 outputs each, got 3 outputs/,
    );
    // What does not fit takes no module up: the next one still may.
    const misfit = flatQ.replace("to_q", "to_qkv");
    const adapter = await importSpecs([
      [`${misfit}.lora_down.weight`, [1, 9]],
      [`${misfit}.lora_up.weight`, [14, 1]],
      [`${flatQ}.lora_down.weight`, [1, 4]],
      [`${flatQ}.lora_up.weight`, [4, 1]],
    ]);
    expect(adapter.layers).toMatchObject([{ module: q, rank: 1 }]);
  });

  const whole = `${flatQ}.lora_up.weight`;
  test.each<[string, Spec[], RegExp, RegExp]>([
    [
      "wrong inputs",
      [
        [`${flatQ}.lora_down.weight`, [2, 5]],
        [whole, [4, 2]],
      ],
      /down \[rank, 4\] and up \[4, rank\]/,
      /down \[2, 5\] and up \[4, 2\]/,
    ],
    [
      "wrong outputs",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [whole, [3, 2]],
      ],
      /up \[4, rank\]/,
      /up \[3, 2\]/,
    ],
    [
      "different ranks",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [whole, [4, 3]],
      ],
      /rank/,
      /up \[4, 3\]/,
    ],
    [
      "rank 0",
      [
        [`${flatQ}.lora_down.weight`, [0, 4]],
        [whole, [4, 0]],
      ],
      /rank/,
      /down \[0, 4\]/,
    ],
    [
      "no up",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [`${flatQ}.alpha`, []],
      ],
      /a down and an up/,
      /no up weight/,
    ],
    ["no down", [[whole, [4, 2]]], /a down and an up/, /no down weight/],
    [
      "many alphas",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [whole, [4, 2]],
        [`${flatQ}.alpha`, [2]],
      ],
      /single number/,
      /\[2\]/,
    ],
    [
      "1x1 for 3x3",
      [
        ["lora_unet_conv_in.lora_down.weight", [1, 2, 1, 1]],
        ["lora_unet_conv_in.lora_up.weight", [3, 1, 1, 1]],
      ],
      /\[rank, 2, 3, 3\]/,
      /\[1, 2, 1, 1\]/,
    ],
  ])("%s is a mismatch", async (_, specs, expected, got) => {
    const name = `lora_unet_${block.replaceAll(".", "_")}_attn1_to_k`;
    const adapter = await importSpecs([
      ...specs,
      [`${name}.lora_down.weight`, [1, 4]],
      [`${name}.lora_up.weight`, [4, 1]],
    ]);
    expect(adapter.layers).toHaveLength(1);
    expect(adapter.report.mismatched.map(({ key }) => key)).toEqual(specs.map(([key]) => key));
    for (const mismatch of adapter.report.mismatched)
      expect(mismatch).toMatchObject({ expected: expect.stringMatching(expected), got: expect.stringMatching(got) });
    expect(await failure(importSpecs(specs))).toMatch(/no layer of this adapter fits/);
  });
});
