import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { InputError, loadModel } from "@quad/onnx";
import { fromFloat32, type SafetensorsDtype } from "@quad/runtime";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openSafetensors, writeSafetensors } from "../files/safetensors.ts";
import { importAdapter } from "./import.ts";
import type { AdaptableModule, ImportedAdapter } from "./types.ts";
import { writeKohya, writePeft } from "./write.ts";

let folder: string;
let count = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quad-adapters-"));
});
afterAll(() => rm(folder, { recursive: true }));

const block = "down_blocks.0.attentions.0.transformer_blocks.0";
const modules: AdaptableModule[] = [
  ...["to_q", "to_k", "to_v", "to_out.0"].map((name) => ({
    component: "unet" as const,
    name: `${block}.attn1.${name}`,
    kind: "linear" as const,
    inFeatures: 4,
    outFeatures: name === "to_v" ? 6 : 4,
  })),
  { component: "unet", name: "down_blocks.0.attentions.0.proj_in", kind: "conv", inFeatures: 3, outFeatures: 4 },
  { component: "unet", name: "down_blocks.0.attentions.0.proj_out", kind: "linear", inFeatures: 4, outFeatures: 3 },
  { component: "unet", name: "conv_in", kind: "conv", inFeatures: 2, outFeatures: 3, kernel: [3, 3] },
];
const q = `${block}.attn1.to_q`;
const flatQ = `lora_unet_${q.replaceAll(".", "_")}`;

/** Small distinct values, so that products and sums of them are exact in every dtype. */
const ramp = (length: number, start = 1) => Float32Array.from({ length }, (_, i) => ((start + i * 3) % 7) - 3);
type Spec = [name: string, shape: number[], values?: Float32Array, dtype?: "F32" | "F16" | "BF16" | "F64"];

async function writeFileOf(specs: Spec[], metadata?: Record<string, string>, at?: string): Promise<string> {
  const path = at ?? join(folder, `adapter-${count++}.safetensors`);
  await writeSafetensors(
    path,
    specs.map(([name, shape, values = ramp(shape.reduce((a, b) => a * b, 1)), dtype = "F32"]) => ({
      name,
      shape,
      dtype: dtype as SafetensorsDtype,
      data: dtype === "F64" ? Float64Array.from(values) : fromFloat32(values, dtype),
    })),
    metadata,
  );
  return path;
}

const importSpecs = async (
  specs: Spec[],
  options: { metadata?: Record<string, string>; of?: AdaptableModule[] } = {},
) => importAdapter(await writeFileOf(specs, options.metadata), options.of ?? modules);
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => expect.fail("did not throw"),
    (error: unknown) => {
      expect(error).toBeInstanceOf(InputError);
      expect((error as Error).message).not.toContain("\n");
      return (error as Error).message;
    },
  );
const layerOf = (adapter: ImportedAdapter, module: string) => adapter.layers.find((layer) => layer.module === module)!;
const scaled = (values: Float32Array, scale: number) => values.map((value) => value * scale);
/** As `toEqual`, which takes seconds for large arrays. */
const areEqual = (a: Float32Array, b: Float32Array) => a.length === b.length && a.every((value, i) => value === b[i]);
const reported = ({ report }: ImportedAdapter) =>
  [...report.matched, ...report.unmatched, ...report.mismatched].map(({ key }) => key).sort();

describe("one layer in every format", () => {
  const down = ramp(8);
  const up = ramp(8, 2);
  const cases: [string, Spec[], number, string][] = [
    [
      "kohya",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [`${flatQ}.lora_up.weight`, [4, 2], up],
        [`${flatQ}.alpha`, [], Float32Array.of(1)],
      ],
      0.5,
      "kohya",
    ],
    [
      "kohya without alpha",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [`${flatQ}.lora_up.weight`, [4, 2], up],
      ],
      1,
      "kohya",
    ],
    [
      "kohya, F16",
      [
        [`${flatQ}.lora_down.weight`, [2, 4], down, "F16"],
        [`${flatQ}.lora_up.weight`, [4, 2], up, "F16"],
        [`${flatQ}.alpha`, [1], Float32Array.of(8), "F16"],
      ],
      4,
      "kohya",
    ],
    [
      "kohya, BF16 and F64",
      [
        [`${flatQ}.lora_down.weight`, [2, 4], down, "BF16"],
        [`${flatQ}.lora_up.weight`, [4, 2], up, "F64"],
      ],
      1,
      "kohya",
    ],
    [
      "kohya with sgm names",
      ["down", "up"].map(
        (side): Spec => [
          `lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_${side}.weight`,
          side === "down" ? [2, 4] : [4, 2],
          side === "down" ? down : up,
        ],
      ),
      1,
      "kohya",
    ],
    [
      "LyCORIS",
      [
        [`${flatQ.replace("lora_unet", "lycoris")}.lora_down.weight`, [2, 4]],
        [`${flatQ.replace("lora_unet", "lycoris")}.lora_up.weight`, [4, 2], up],
      ],
      1,
      "lycoris",
    ],
    [
      "diffusers' processors",
      [
        [`unet.${block}.attn1.processor.to_q_lora.down.weight`, [2, 4]],
        [`unet.${block}.attn1.processor.to_q_lora.up.weight`, [4, 2], up],
      ],
      1,
      "diffusers",
    ],
    [
      "diffusers",
      [
        [`unet.${q}.lora.down.weight`, [2, 4]],
        [`unet.${q}.lora.up.weight`, [4, 2], up],
        [`unet.${q}.alpha`, [], Float32Array.of(6)],
      ],
      3,
      "diffusers",
    ],
    [
      "diffusers' linear layers",
      [
        [`unet.${q}.lora_linear_layer.down.weight`, [2, 4]],
        [`unet.${q}.lora_linear_layer.up.weight`, [4, 2], up],
      ],
      1,
      "diffusers",
    ],
    [
      "PEFT in diffusers",
      [
        [`unet.${q}.lora_A.weight`, [2, 4]],
        [`unet.${q}.lora_B.weight`, [4, 2], up],
      ],
      1,
      "peft",
    ],
    [
      "PEFT",
      [
        [`base_model.model.${q}.lora_A.default.weight`, [2, 4]],
        [`base_model.model.${q}.lora_B.default.weight`, [4, 2], up],
      ],
      1,
      "peft",
    ],
    [
      "ComfyUI",
      [
        [`diffusion_model.${q}.lora_A.weight`, [2, 4]],
        [`diffusion_model.${q}.lora_B.weight`, [4, 2], up],
      ],
      1,
      "peft",
    ],
  ];
  test.each(cases)("%s", async (_, specs, scale, format) => {
    const adapter = await importSpecs(specs);
    expect(adapter.format).toBe(format);
    expect(adapter.layers).toEqual([{ component: "unet", module: q, rank: 2, down, up: scaled(up, scale) }]);
    expect(adapter.report.unmatched).toEqual([]);
    expect(adapter.report.mismatched).toEqual([]);
    expect(adapter.report).toMatchObject({ rankMin: 2, rankMax: 2 });
    expect(reported(adapter)).toEqual(specs.map(([key]) => key).sort());
  });

  test("attention outputs of diffusers' processors", async () => {
    const name = `unet.${block}.attn1.processor.to_out_lora`;
    const adapter = await importSpecs([
      [`${name}.down.weight`, [1, 4]],
      [`${name}.up.weight`, [4, 1]],
    ]);
    expect(adapter.layers.map(({ module }) => module)).toEqual([`${block}.attn1.to_out.0`]);
  });
});

describe("PEFT configurations", () => {
  const specs: Spec[] = ["to_q", "to_k", "to_v"].flatMap((name): Spec[] => [
    [`base_model.model.${block}.attn1.${name}.lora_A.weight`, [name === "to_k" ? 4 : 2, 4]],
    [
      `base_model.model.${block}.attn1.${name}.lora_B.weight`,
      name === "to_v" ? [6, 2] : name === "to_k" ? [4, 4] : [4, 2],
    ],
  ]);
  const write = async (config: unknown, tensors = specs) => {
    const path = join(folder, `peft-${count++}`);
    await mkdir(path);
    await writeFileOf(tensors, undefined, join(path, "adapter_model.safetensors"));
    await writeFile(join(path, "adapter_config.json"), typeof config === "string" ? config : JSON.stringify(config));
    return path;
  };
  const scales = (adapter: ImportedAdapter) =>
    Object.fromEntries(
      ["to_q", "to_k", "to_v"].map((name) => {
        const { up } = layerOf(adapter, `${block}.attn1.${name}`);
        return [name, up[0]! / ramp(1)[0]!];
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
    ["no JSON", "{", /not JSON/],
    ["a rank of zero", { r: 0 }, /adapter_config\.json: r: /],
    ["another method", { peft_type: "LOHA" }, /LOHA adapters are not supported/],
    ["DoRA", { use_dora: true }, /DoRA/],
    ["PiSSA", { r: 2, init_lora_weights: "pissa_niter_4" }, /pissa_niter_4 trains against changed base weights/],
    ["a broken pattern", { r: 2, rank_pattern: { "to_(": 4 } }, /no regular expression/],
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
      return down[j * 2]! * image[p]! + down[j * 2 + 1]! * image[9 + p]!;
    });
    const sumOf = (length: number, term: (i: number) => number) =>
      Array.from({ length }, (_, i) => term(i)).reduce((a, b) => a + b, 0);
    const core = [0, 1, 2].map((i) => sumOf(18, (n) => mid[i * 18 + n]! * reduced[n]!));
    const expected = [0, 1, 2].map((o) => 0.5 * sumOf(3, (i) => up[o * 3 + i]! * core[i]!));
    const inner = [0, 1, 2].map((i) => sumOf(18, (n) => layer.down[i * 18 + n]! * image[n]!));
    expect([0, 1, 2].map((o) => sumOf(3, (i) => layer.up[o * 3 + i]! * inner[i]!))).toEqual(expected);
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
    expect(adapter.report.matched[0]!.module).toBe(
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
        return Array.from({ length: rank }, (_, r) => up[o * rank + r]! * down[r * 3 + c]!).reduce((a, b) => a + b, 0);
      });
    const own = (rank: number, i: number) =>
      Array.from({ length: 6 }, (_, n) => {
        const [o, c] = [Math.floor(n / 3), n % 3];
        return Array.from(
          { length: rank },
          (_, r) => ramp(2 * rank, i)[o * rank + r]! * ramp(rank * 3)[r * 3 + c]!,
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
    ["LoHa", "lora_unet_conv_in.hada_w1_a"],
    ["LoKr", "lora_unet_conv_in.lokr_w1"],
    ["DoRA", `${flatQ}.dora_scale`],
  ])("%s is refused by name, file and key", async (method, key) => {
    const message = await failure(importSpecs([...good, [key, [1]]]));
    expect(message).toMatch(new RegExp(`adapter-\\d+\\.safetensors: ${key}: ${method} adapters are not supported`));
  });

  test.each<[string, Spec[], string]>([
    ["NaN", [[good[0]![0], [2, 4], ramp(8).fill(Number.NaN, 5, 6)], good[1]!], "lora_down"],
    ["infinity", [good[0]!, [good[1]![0], [4, 2], ramp(8).fill(Number.POSITIVE_INFINITY, 7)]], "lora_up"],
    ["F16 overflow", [good[0]!, [good[1]![0], [4, 2], ramp(8).fill(70000), "F16"]], "lora_up"],
    [
      "overflow by the scale",
      [good[0]!, [good[1]![0], [4, 2], ramp(8).fill(3e38)], [`${flatQ}.alpha`, [], Float32Array.of(4)]],
      "lora_up",
    ],
    ["an infinite alpha", [...good, [`${flatQ}.alpha`, [], Float32Array.of(Number.POSITIVE_INFINITY)]], "alpha"],
  ])("%s names the key", async (_, specs, part) => {
    expect(await failure(importSpecs(specs))).toMatch(new RegExp(`${flatQ}\\.${part}.*not finite`));
  });

  test("integers in place of weights are refused: their scales are nowhere", async () => {
    const path = join(folder, "codes.safetensors");
    await writeSafetensors(path, [
      { name: good[0]![0], dtype: "I8", shape: [2, 4], data: new Int8Array(8) },
      { name: good[1]![0], dtype: "F32", shape: [4, 2], data: ramp(8) },
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

  test("paths that are no adapter", async () => {
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

describe("Pocket's adapters", () => {
  const pocket = fileURLToPath(new URL("../../../../models/pocket/", import.meta.url));
  /** The UNet's layers from its ONNX graph: paths from node names, shapes from the weights. */
  function pocketModules(): AdaptableModule[] {
    const model = loadModel(join(pocket, "unet/model.onnx"));
    return [...model.graph.nodes].flatMap((node): AdaptableModule[] => {
      const path = /^\/(.+)\/(MatMul|Gemm|Conv)$/.exec(node.name);
      const shape = node.inputs[1]?.initializer?.dims;
      if (!path || !shape) return [];
      const name = path[1]!.replaceAll("/", ".");
      const [first, second, height, width] = shape as [number, number, number, number];
      if (path[2] === "Conv")
        return [
          { component: "unet", name, kind: "conv", inFeatures: second, outFeatures: first, kernel: [height, width] },
        ];
      // MatMul multiplies by [in, out], Gemm by the transpose of [out, in].
      const [inFeatures, outFeatures] = path[2] === "MatMul" ? [first, second] : [second, first];
      return [{ component: "unet", name, kind: "linear", inFeatures, outFeatures }];
    });
  }
  let pocketList: AdaptableModule[];
  beforeAll(() => {
    pocketList = pocketModules();
  });

  test.each([
    ["flat.safetensors", "kohya", 360, 120, 16, "lora_unet_", ".lora_down.weight", ".lora_up.weight", 0.5],
    ["sketch", "peft", 240, 120, 8, "unet.", ".lora_A.weight", ".lora_B.weight", 1],
    ["erase.safetensors", "diffusers", 240, 120, 8, "unet.", ".lora.down.weight", ".lora.up.weight", 1],
  ])("%s is read whole", async (file, format, keyCount, layerCount, rank, prefix, downSuffix, upSuffix, scale) => {
    const path = join(pocket, "adapters", file);
    const adapter = await importAdapter(path, pocketList);
    expect(adapter.format).toBe(format);
    expect(adapter.name).toBe(file.replace(".safetensors", ""));
    expect(adapter.layers).toHaveLength(layerCount);
    expect(adapter.report).toMatchObject({ unmatched: [], mismatched: [], rankMin: rank, rankMax: rank });
    expect(adapter.report.matched).toHaveLength(keyCount);
    const reader = await openSafetensors(file === "sketch" ? join(path, "adapter_model.safetensors") : path);
    for (const { module, down, up } of adapter.layers) {
      const name = prefix + (format === "kohya" ? module.replaceAll(".", "_") : module);
      expect(areEqual(down, await reader.readFloat32(name + downSuffix)), module).toBe(true);
      expect(areEqual(up, scaled(await reader.readFloat32(name + upSuffix), scale)), module).toBe(true);
    }
    await reader.close();
  });

  test.each(["flat.safetensors", "sketch"])("%s reads back identically after writing", async (file) => {
    const adapter = await importAdapter(join(pocket, "adapters", file), pocketList);
    const [kohya, peft] = [join(folder, "out.safetensors"), join(folder, "out")];
    await writeKohya(kohya, adapter.layers, pocketList);
    await writePeft(peft, adapter.layers, pocketList);
    for (const path of [kohya, peft]) {
      const back = await importAdapter(path, pocketList);
      expect(back.report).toMatchObject({ unmatched: [], mismatched: [] });
      expect(back.layers.map(({ module, rank }) => [module, rank])).toEqual(
        adapter.layers.map(({ module, rank }) => [module, rank]),
      );
      for (const [i, { module, down, up }] of adapter.layers.entries())
        expect(areEqual(back.layers[i]!.down, down) && areEqual(back.layers[i]!.up, up), module).toBe(true);
    }
  });
});

test("written adapters keep ranks that differ, components and the ends of paths apart", async () => {
  const list: AdaptableModule[] = [
    { component: "text_encoder", name: "a.conv1", kind: "linear", inFeatures: 2, outFeatures: 2 },
    { component: "text_encoder_2", name: "a.conv1", kind: "linear", inFeatures: 2, outFeatures: 2 },
    { component: "unet", name: "conv1", kind: "conv", inFeatures: 2, outFeatures: 3, kernel: [3, 1] },
    { component: "unet", name: "x.conv1", kind: "conv", inFeatures: 4, outFeatures: 3, groups: 2 },
  ];
  const layers = list.map((module, i) => {
    const rank = i + 1;
    const size = (module.inFeatures / (module.groups ?? 1)) * (module.kernel ?? [1, 1])[0]!;
    const { component, name } = module;
    return { component, module: name, rank, down: ramp(rank * size, i), up: ramp(module.outFeatures * rank, i + 1) };
  });
  for (const dtype of ["F32", "F16", "BF16"] as const) {
    const [kohya, peft] = [join(folder, `k-${dtype}.safetensors`), join(folder, `p-${dtype}`)];
    await writeKohya(kohya, layers, list, { dtype, metadata: { note: "x" } });
    await writePeft(peft, layers, list, { dtype });
    for (const path of [kohya, peft]) {
      const { layers: back, report } = await importAdapter(path, list);
      expect(back).toEqual(layers);
      expect(report).toMatchObject({ unmatched: [], mismatched: [], rankMin: 1, rankMax: 4 });
    }
  }
  const unet = list.slice(2);
  await writePeft(join(folder, "one-component"), layers.slice(2), unet);
  expect((await importAdapter(join(folder, "one-component"), unet)).layers).toEqual(layers.slice(2));
  const large = [{ ...layers[0]!, up: ramp(2).fill(70000) }];
  expect(await failure(writeKohya(join(folder, "large"), large, list, { dtype: "F16" }))).toMatch(/range of F16/);
  expect(await failure(writeKohya(join(folder, "none"), layers, []))).toMatch(/no such module/);
  expect(await failure(writePeft(join(folder, "odd"), [{ ...layers[0]!, down: ramp(3) }], list))).toMatch(/do not fit/);
});
