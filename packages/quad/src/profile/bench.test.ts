import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { SlotsFile } from "@quad-lora/runtime";
import { beforeAll, describe, expect, test } from "vitest";
import { exposedPocket } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { factorMetadata, factorPath, readFactorFile } from "../factors/factor-file.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import type { QuantizationPoint } from "../quantizable/points.ts";
import type { Observations } from "../records/observations.ts";
import { policySchema } from "../settings/policy.ts";
import { chooseEncodings, widthsOf } from "./activation-encodings.ts";
import { Bench, ownProfile, sharedProfile } from "./bench.ts";

const shape = { batch: 2, height: 8, width: 8, tokens: 16 };
const policy = policySchema.parse({ align: false });
const tasks = ["base", "small", "large"];

/** Two values that two tasks saw between 0 and 1, and between -2 and 0. */
const observations: Observations = {
  names: ["x", "y"],
  stepGroups: 1,
  bins: 2,
  low: Float32Array.of(-2, -2),
  high: Float32Array.of(2, 2),
  tasks: [
    { task: "base", minima: [0, 0], maxima: [1, 1], counts: [0, 4, 0, 4] },
    { task: "small", minima: [-2, -2], maxima: [0, 0], counts: [4, 0, 4, 0] },
  ].map(({ task, minima, maxima, counts }) => ({
    task,
    minima: Float32Array.from(minima),
    maxima: Float32Array.from(maxima),
    counts: Float64Array.from(counts),
  })) as Observations["tasks"],
};

const points: QuantizationPoint[] = ["x", "y"].map((name) => ({ name, kind: "activation", observed: name }));

let model: ExposedModel;
let bench: Bench;

beforeAll(async () => {
  // The pocket model with a convolution of a text encoder among the slots, and two adapters of other ranks.
  const exposed = await exposedPocket();
  const folder = temporaryFolder();
  symlinkSync(join(exposed, "unet"), join(folder, "unet"));
  const file: SlotsFile = JSON.parse(readFileSync(join(exposed, "slots.json"), "utf8"));
  const chosen = file.components.unet.slots.filter(({ name }) => /mid_block.*attn1/.test(name));
  const slots: SlotsFile = {
    ...file,
    components: {
      unet: file.components.unet,
      text_encoder: {
        strengthInput: "text_encoder.lora_strength",
        slots: [
          {
            name: "conv",
            kind: "conv",
            kernel: [1, 3],
            inFeatures: 1,
            outFeatures: 2,
            inputA: "text_encoder.conv.lora_A",
            shapeA: ["rank", 1, 1, 3],
            inputB: "text_encoder.conv.lora_B",
            shapeB: [2, "rank", 1, 1],
          },
        ],
      },
    },
  };
  writeFileSync(join(folder, "slots.json"), JSON.stringify(slots));
  for (const [name, source] of [
    ["small", "sketch"],
    ["large", "flat"],
  ]) {
    const { rank, tensors } = await readFactorFile(factorPath(exposed, source));
    const own = chosen.flatMap(({ inputA, shapeA, inputB, shapeB }) =>
      [
        { name: inputA, shape: shapeA },
        { name: inputB, shape: shapeB },
      ].map((input) => ({
        name: input.name,
        dtype: "F32" as const,
        shape: input.shape.map((dim) => (dim === "rank" ? rank : dim)),
        data: tensors.get(input.name)!,
      })),
    );
    const conv = [
      { name: "text_encoder.conv.lora_A", dtype: "F32" as const, shape: [rank, 1, 1, 3], data: counted(3 * rank) },
      { name: "text_encoder.conv.lora_B", dtype: "F32" as const, shape: [2, rank, 1, 1], data: counted(2 * rank) },
    ];
    await writeSafetensors(factorPath(folder, name), [...own, ...conv], factorMetadata(rank));
  }
  model = await ExposedModel.open(folder);
  bench = await Bench.open(model, shape, tasks, observations);
});

function counted(length: number): Float32Array {
  return Float32Array.from({ length }, (_, index) => index + 1);
}

describe("an adapter on a bench", () => {
  test("has the largest rank, and factors of a text encoder's convolution are filled up along their own rank", () => {
    const { rank, values } = bench.encoded("small", bench.scales(sharedProfile(tasks, policy)), policy)!;
    expect([bench.rank, rank]).toEqual([16, 16]);
    const named = new Map(
      values.map(({ name, shape: dims, data }) => [name, { dims, data: [...(data as Float32Array)] }]),
    );
    const a = named.get("text_encoder.conv.lora_A")!;
    const b = named.get("text_encoder.conv.lora_B")!;
    const zeros = (count: number) => new Array(count).fill(0);
    expect(a).toEqual({ dims: [16, 1, 1, 3], data: [...counted(24), ...zeros(24)] });
    const rows = [...counted(16)];
    expect(b).toEqual({
      dims: [2, 16, 1, 1],
      data: [...rows.slice(0, 8), ...zeros(8), ...rows.slice(8), ...zeros(8)],
    });
  });

  test("lies on its own scales or on those of all members, which reach as far as the largest with headroom", () => {
    const own = (name: string) => bench.scales(ownProfile(name, policy));
    const shared = bench.scales(sharedProfile(tasks, policy));
    const [slot] = [...bench.factors.get("large")!.keys()];
    const room = Math.sqrt(policy.headroom);
    const most = Math.max(own("small").get(slot)!.a, own("large").get(slot)!.a);
    expect(shared.get(slot)!.a / (room * most)).toBeCloseTo(1, 6);
  });

  test("is encoded once per scales and policy; the base has nothing to encode", () => {
    const scales = bench.scales(ownProfile("small", policy));
    expect(bench.scales(ownProfile("small", policy))).toBe(scales);
    expect(bench.encoded("small", scales, policy)).toBe(bench.encoded("small", scales, policy));
    const wide = bench.encoded("small", scales, { ...policy, adapterBits: 16 });
    expect(wide).not.toBe(bench.encoded("small", scales, policy));
    expect(bench.encoded("base", scales, policy)).toBeNull();
  });
});

describe("encodings on a bench", () => {
  const widths = widthsOf(policy, new Set());

  test("are those that the members' observations give", () => {
    for (const members of [["base"], ["small"], ["base", "small"]]) {
      const expected = chooseEncodings(points, observations, members, widths, policy);
      expect(bench.encodings(points, sharedProfile(members, policy), widths)).toEqual(expected);
    }
    expect(bench.encodings(points.slice(1), ownProfile("base", policy), widths)).toHaveLength(1);
  });

  test("need observations of every member", async () => {
    expect(bench.hasSeen(["base", "small"])).toBe(true);
    expect(bench.hasSeen(["base", "large"])).toBe(false);
    const blind = await Bench.open(model, shape, tasks, null);
    expect([blind.hasSeen([]), blind.hasSeen(["base"])]).toEqual([false, false]);
  });
});
