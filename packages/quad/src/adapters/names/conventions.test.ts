import { describe, expect, test } from "vitest";
import { ModuleIndex } from "../module-index.ts";
import { failure, importSpecs, ramp, type Spec } from "../testing.ts";
import type { AdaptableModule, AdapterComponent, AdapterLayer } from "../types.ts";
import type { AdapterTarget } from "./target.ts";
import { targetModules } from "./target.ts";

type Sizes = readonly [name: string, inFeatures: number, outFeatures: number];
const modulesOf = (component: AdapterComponent, layers: readonly Sizes[]): AdaptableModule[] =>
  layers.map(([name, inFeatures, outFeatures]) => ({ component, name, kind: "linear", inFeatures, outFeatures }));

const attention = (block: string, names: readonly string[]): Sizes[] =>
  names.map((name) => [`${block}.attn.${name}`, 4, 4]);
const own = ["to_q", "to_k", "to_v", "to_out.0"];
const context = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];

const flux = modulesOf("transformer", [
  ["x_embedder", 3, 4],
  ["context_embedder", 5, 4],
  ...["timestep", "guidance", "text"].flatMap((kind): Sizes[] => [
    [`time_text_embed.${kind}_embedder.linear_1`, 6, 4],
    [`time_text_embed.${kind}_embedder.linear_2`, 4, 4],
  ]),
  ...attention("transformer_blocks.0", [...own, ...context]),
  ["transformer_blocks.0.norm1.linear", 4, 24],
  ["transformer_blocks.0.norm1_context.linear", 4, 24],
  ["transformer_blocks.0.ff.net.0.proj", 4, 16],
  ["transformer_blocks.0.ff.net.2", 16, 4],
  ["transformer_blocks.0.ff_context.net.0.proj", 4, 16],
  ["transformer_blocks.0.ff_context.net.2", 16, 4],
  ...attention("single_transformer_blocks.0", own.slice(0, 3)),
  ["single_transformer_blocks.0.proj_mlp", 4, 16],
  ["single_transformer_blocks.0.proj_out", 20, 4],
  ["single_transformer_blocks.0.norm.linear", 4, 12],
  ["norm_out.linear", 4, 8],
  ["proj_out", 4, 3],
]);

const sd3 = modulesOf("transformer", [
  ["pos_embed.proj", 3, 4],
  ["norm_out.linear", 4, 8],
  ["proj_out", 4, 3],
  ...["0", "1"].flatMap((block): Sizes[] => [
    ...attention(
      `transformer_blocks.${block}`,
      block === "0" ? [...own, ...context] : [...own, ...context.slice(0, 3)],
    ),
    [`transformer_blocks.${block}.norm1.linear`, 4, 24],
    // The last block's text stream ends: shift and scale, no gates, no feed-forward.
    [`transformer_blocks.${block}.norm1_context.linear`, 4, block === "0" ? 24 : 8],
  ]),
  ...["to_q", "to_k", "to_v", "to_out.0"].map((name): Sizes => [`transformer_blocks.0.attn2.${name}`, 4, 4]),
]);

const targetOf = (index: ModuleIndex, path: string): AdapterTarget | undefined => {
  const resolution = index.resolve(path);
  return "target" in resolution ? resolution.target : undefined;
};
const namesOf = (target: AdapterTarget | undefined) => target && targetModules(target).map(({ name }) => name);

describe.each<[string, (name: string) => string]>([
  ["lora_unet_", (name) => `lora_unet_${name.replaceAll(".", "_")}`],
  ["diffusion_model.", (name) => `diffusion_model.${name}`],
  ["model.diffusion_model.", (name) => `model.diffusion_model.${name}`],
  ["transformer.", (name) => `transformer.${name}`],
  ["no prefix", (name) => name],
  ["base_model.model.", (name) => `base_model.model.${name}`],
])("with %s", (_, spell) => {
  test.each<[string, string[]]>([
    ["img_in", ["x_embedder"]],
    ["txt_in", ["context_embedder"]],
    ["time_in.in_layer", ["time_text_embed.timestep_embedder.linear_1"]],
    ["vector_in.out_layer", ["time_text_embed.text_embedder.linear_2"]],
    ["guidance_in.out_layer", ["time_text_embed.guidance_embedder.linear_2"]],
    ["double_blocks.0.img_attn.qkv", own.slice(0, 3).map((name) => `transformer_blocks.0.attn.${name}`)],
    ["double_blocks.0.txt_attn.qkv", context.slice(0, 3).map((name) => `transformer_blocks.0.attn.${name}`)],
    ["double_blocks.0.img_attn.proj", ["transformer_blocks.0.attn.to_out.0"]],
    ["double_blocks.0.txt_attn.proj", ["transformer_blocks.0.attn.to_add_out"]],
    ["double_blocks.0.img_mlp.0", ["transformer_blocks.0.ff.net.0.proj"]],
    ["double_blocks.0.txt_mlp.2", ["transformer_blocks.0.ff_context.net.2"]],
    ["double_blocks.0.img_mod.lin", ["transformer_blocks.0.norm1.linear"]],
    ["double_blocks.0.txt_mod.lin", ["transformer_blocks.0.norm1_context.linear"]],
    [
      "single_blocks.0.linear1",
      [
        ...own.slice(0, 3).map((name) => `single_transformer_blocks.0.attn.${name}`),
        "single_transformer_blocks.0.proj_mlp",
      ],
    ],
    ["single_blocks.0.linear2", ["single_transformer_blocks.0.proj_out"]],
    ["single_blocks.0.modulation.lin", ["single_transformer_blocks.0.norm.linear"]],
    ["final_layer.linear", ["proj_out"]],
    ["final_layer.adaLN_modulation.1", ["norm_out.linear"]],
  ])("Flux's original %s", (name, expected) => {
    expect(namesOf(targetOf(new ModuleIndex(flux), spell(name)))).toEqual(expected);
  });

  test.each<[string, string[], AdapterTarget["kind"]]>([
    ["joint_blocks.0.x_block.attn.qkv", own.slice(0, 3).map((name) => `transformer_blocks.0.attn.${name}`), "split"],
    [
      "joint_blocks.1.context_block.attn.qkv",
      context.slice(0, 3).map((n) => `transformer_blocks.1.attn.${n}`),
      "split",
    ],
    ["joint_blocks.0.x_block.attn2.proj", ["transformer_blocks.0.attn2.to_out.0"], "whole"],
    ["joint_blocks.0.x_block.adaLN_modulation.1", ["transformer_blocks.0.norm1.linear"], "whole"],
    ["joint_blocks.0.context_block.adaLN_modulation.1", ["transformer_blocks.0.norm1_context.linear"], "whole"],
    ["joint_blocks.1.context_block.adaLN_modulation.1", ["transformer_blocks.1.norm1_context.linear"], "swapped"],
    ["final_layer.adaLN_modulation.1", ["norm_out.linear"], "swapped"],
    ["x_embedder.proj", ["pos_embed.proj"], "whole"],
  ])("Stable Diffusion 3's original %s", (name, expected, kind) => {
    const target = targetOf(new ModuleIndex(sd3), spell(name));
    expect([namesOf(target), target?.kind]).toEqual([expected, kind]);
  });
});

/** A layer's change as rows of numbers. */
const changeOf = ({ up, down, rank }: AdapterLayer) => {
  const inputs = down.length / rank;
  return Array.from({ length: up.length / rank }, (_, o) =>
    Array.from({ length: inputs }, (_, i) => {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += up[o * rank + k] * down[k * inputs + i];
      return sum;
    }),
  );
};
const layer = (layers: readonly AdapterLayer[], name: string) => layers.find(({ module }) => module === name)!;
const factors = (path: string, inFeatures: number, outFeatures: number): Spec[] => [
  [`${path}.lora_A.weight`, [2, inFeatures]],
  [`${path}.lora_B.weight`, [outFeatures, 2], ramp(outFeatures * 2, 5)],
];
const wholeChange = (inFeatures: number, outFeatures: number) =>
  changeOf({ component: "unet", module: "", rank: 2, down: ramp(2 * inFeatures), up: ramp(outFeatures * 2, 5) });

test("a single block's first layer is cut into four parts of unequal size", async () => {
  const { layers } = await importSpecs(factors("diffusion_model.single_blocks.0.linear1", 4, 28), { of: flux });
  const rows = wholeChange(4, 28);
  const block = "single_transformer_blocks.0";
  expect(changeOf(layer(layers, `${block}.attn.to_q`))).toEqual(rows.slice(0, 4));
  expect(changeOf(layer(layers, `${block}.attn.to_k`))).toEqual(rows.slice(4, 8));
  expect(changeOf(layer(layers, `${block}.attn.to_v`))).toEqual(rows.slice(8, 12));
  expect(changeOf(layer(layers, `${block}.proj_mlp`))).toEqual(rows.slice(12));
});

test("the last modulation's halves change places", async () => {
  const { layers } = await importSpecs(factors("diffusion_model.final_layer.adaLN_modulation.1", 4, 8), { of: flux });
  const rows = wholeChange(4, 8);
  expect(changeOf(layers[0])).toEqual([...rows.slice(4), ...rows.slice(0, 4)]);
});

test("a model that fuses a single block's projections takes separate ones, wherever they lie, and the original whole", async () => {
  const name = "single_transformer_blocks.0.attn.to_qkv_mlp_proj";
  const of = modulesOf("transformer", [[name, 4, 28]]);
  const fused = await importSpecs(factors("transformer.single_blocks.0.linear1", 4, 28), { of });
  expect(fused.report.unmatched.map(({ key }) => key)).toEqual([]);
  expect(changeOf(layer(fused.layers, name))).toEqual(wholeChange(4, 28));
  const block = "transformer.single_transformer_blocks.0";
  const { layers, report } = await importSpecs(
    [...factors(`${block}.attn.to_v`, 4, 4), ...factors(`${block}.proj_mlp`, 4, 16)],
    { of },
  );
  expect(report).toMatchObject({ unmatched: [], mismatched: [] });
  const change = changeOf(layer(layers, name));
  expect(
    change
      .slice(0, 8)
      .flat()
      .every((value) => value === 0),
  ).toBe(true);
  expect(change.slice(8, 12)).toEqual(wholeChange(4, 4));
  expect(change.slice(12)).toEqual(wholeChange(4, 16));
});

test("XLabs' processors", async () => {
  const specs: Spec[] = ["double_blocks.0.processor.qkv_lora2", "single_blocks.0.processor.proj_lora"].flatMap(
    (path): Spec[] => [
      [`${path}.down.weight`, [2, path.startsWith("single") ? 20 : 4]],
      [`${path}.up.weight`, [path.startsWith("single") ? 4 : 12, 2]],
    ],
  );
  const { layers, report } = await importSpecs(specs, { of: flux });
  expect(report).toMatchObject({ unmatched: [], mismatched: [] });
  expect(layers.map(({ module }) => module)).toEqual([
    ...context.slice(0, 3).map((name) => `transformer_blocks.0.attn.${name}`),
    "single_transformer_blocks.0.proj_out",
  ]);
});

describe("text encoders", () => {
  const t5 = "encoder.block.0.layer.0.SelfAttention.q";
  const clip = "text_model.encoder.layers.0.mlp.fc1";

  test("T5 is te3 whether it is the model's second encoder or its third", () => {
    for (const component of ["text_encoder_2", "text_encoder_3"] as const) {
      const index = new ModuleIndex([
        ...modulesOf("text_encoder", [[clip, 4, 4]]),
        ...modulesOf(component, [[t5, 4, 4]]),
      ]);
      for (const path of [`lora_te3_${t5.replaceAll(".", "_")}`, `text_encoders.t5xxl.transformer.${t5}`])
        expect(targetOf(index, path)).toMatchObject({ module: { component, name: t5 } });
    }
  });

  test.each(["text_model.encoder.layers.0", "encoder.layers.0", "text_model.layers.0", "layers.0"])(
    "a model that calls its layers %s finds them under every version's name",
    (scope) => {
      const index = new ModuleIndex(modulesOf("text_encoder", [[`${scope}.mlp.fc1`, 4, 4]]));
      for (const path of [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_encoder_layers_0_mlp_fc1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder.encoder.layers.0.mlp.fc1",
        "lora_te_transformer_resblocks_0_mlp_c_fc",
      ])
        expect(targetOf(index, path), path).toMatchObject({ module: { name: `${scope}.mlp.fc1` } });
    },
  );
});

test("a ControlNet's layers are found by prefix; without one the name is the UNet's", () => {
  const name = "down_blocks.0.attentions.0.proj_in";
  const index = new ModuleIndex([...modulesOf("unet", [[name, 4, 4]]), ...modulesOf("controlnet", [[name, 4, 4]])]);
  const component = (path: string) => targetOf(index, path) && targetModules(targetOf(index, path)!)[0].component;
  expect(component(`lora_controlnet_${name.replaceAll(".", "_")}`)).toBe("controlnet");
  expect(component(`controlnet.${name}`)).toBe("controlnet");
  expect(component(name)).toBe("unet");
  expect(component(`lora_unet_${name.replaceAll(".", "_")}`)).toBe("unet");
});

test("a file whose denoiser keys all fail is refused although its text encoder's fit", async () => {
  const clip = "text_model.encoder.layers.0.mlp.fc1";
  const of = [...flux, ...modulesOf("text_encoder", [[clip, 4, 4]])];
  const text = factors(`text_encoder.${clip}`, 4, 4);
  for (const path of ["lora_unet_input_blocks_1_1_proj_in", "transformer.nowhere", "base_model.model.nowhere"])
    expect(await failure(importSpecs([...text, ...factors(path, 4, 4)], { of })), path).toMatch(
      /none of this adapter's keys for the denoiser fits the model; 2 for other components do.*got \S+lora_A/,
    );
  expect((await importSpecs(text, { of })).layers).toHaveLength(1);
  const partly = await importSpecs(
    [...text, ...factors("transformer.nowhere", 4, 4), ...factors("transformer.proj_out", 4, 3)],
    { of },
  );
  expect(partly.report.unmatched).toHaveLength(2);
});
