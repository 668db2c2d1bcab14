import { join } from "node:path";
import type { Slot } from "@quad-lora/runtime";
import { beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { encodeAdapter, slotScales } from "./encode-factors.ts";
import { loadFactors } from "./load-factors.ts";

const folder = temporaryFolder();

const slots: { strengthInput: string; slots: Slot[] } = {
  strengthInput: "unet.lora_strength",
  slots: [
    {
      name: "linear",
      kind: "matmul",
      inFeatures: 2,
      outFeatures: 3,
      inputA: "linear.A",
      shapeA: [2, "rank"],
      inputB: "linear.B",
      shapeB: ["rank", 3],
    },
    {
      name: "conv",
      kind: "conv",
      kernel: [1, 2],
      inFeatures: 1,
      outFeatures: 2,
      inputA: "conv.A",
      shapeA: ["rank", 1, 1, 2],
      inputB: "conv.B",
      shapeB: [2, "rank", 1, 1],
    },
  ],
};

beforeAll(async () => {
  await writeSafetensors(
    join(folder, "adapters", "small.safetensors"),
    [
      { name: "linear.A", dtype: "F32", shape: [2, 1], data: Float32Array.of(1, 2) },
      { name: "linear.B", dtype: "F32", shape: [1, 3], data: Float32Array.of(3, 4, 5) },
    ],
    { "quad.rank": "1" },
  );
  await writeSafetensors(
    join(folder, "adapters", "large.safetensors"),
    [
      { name: "conv.A", dtype: "F32", shape: [2, 1, 1, 2], data: Float32Array.of(1, 2, 3, 4) },
      { name: "conv.B", dtype: "F32", shape: [2, 2, 1, 1], data: Float32Array.of(5, 6, 7, 8) },
    ],
    { "quad.rank": "2" },
  );
});

describe("factors of an exposed folder", () => {
  test("are matrices padded to the largest rank; names without a file are left out", async () => {
    const { factors, rank } = await loadFactors(folder, slots, ["base", "small", "large"]);
    expect([rank, [...factors.keys()]]).toEqual([2, ["small", "large"]]);
    const linear = factors.get("small")!.get("linear")!;
    expect([...linear.A]).toEqual([1, 0, 2, 0]);
    expect([...linear.B]).toEqual([3, 4, 5, 0, 0, 0]);
    // A convolution's factors in rows: A [in * kh * kw, rank], B [rank, out].
    const conv = factors.get("large")!.get("conv")!;
    expect([...conv.A]).toEqual([1, 3, 2, 4]);
    expect([...conv.B]).toEqual([5, 7, 6, 8]);
  });

  test("come back in the inputs' layouts, on the grid; padding stays exactly zero", async () => {
    const { factors } = await loadFactors(folder, slots, ["small", "large"]);
    const adapters = [...factors.values()];
    const scales = slotScales(adapters, slots.slots, 16, 1, false);
    const small = encodeAdapter(factors.get("small")!, slots.slots, scales, 16, false);
    expect(small.values.map(({ name, shape }) => [name, shape])).toEqual([
      ["linear.A", [2, 2]],
      ["linear.B", [2, 3]],
    ]);
    const [a, b] = small.values.map(({ data }) => [...(data as Float32Array)]);
    expect([a[1], a[3], ...b.slice(3)]).toEqual([0, 0, 0, 0, 0]);
    for (const [got, wanted] of [
      [a[0], 1],
      [a[2], 2],
      [b[0], 3],
      [b[1], 4],
      [b[2], 5],
    ]) {
      expect(Math.abs(got - wanted)).toBeLessThan(1e-3);
    }
    const large = encodeAdapter(factors.get("large")!, slots.slots, scales, 16, false);
    expect(large.values.map(({ shape }) => shape)).toEqual([
      [2, 1, 1, 2],
      [2, 2, 1, 1],
    ]);
    const conv = large.values.map(({ data }) => [...(data as Float32Array)].map((value) => Math.round(value)));
    expect(conv).toEqual([
      [1, 2, 3, 4],
      [5, 6, 7, 8],
    ]);
  });
});

test("without alignment, scales reach the largest factor and nothing is clipped", async () => {
  const { factors } = await loadFactors(folder, slots, ["small", "large"]);
  const adapters = [...factors.values()];
  const scales = slotScales(adapters, slots.slots, 8, 4, false);
  expect(scales.get("linear")!.a).toBeCloseTo((2 * 2) / 127, 6);
  expect(scales.get("linear")!.b).toBeCloseTo((2 * 5) / 127, 6);
  for (const adapter of adapters) {
    for (const { clippedA, clippedB } of encodeAdapter(adapter, slots.slots, scales, 8, false).fit) {
      expect([clippedA, clippedB]).toEqual([0, 0]);
    }
  }
});
