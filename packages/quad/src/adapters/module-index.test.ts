import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { ModuleIndex } from "./module-index.ts";
import type { AdaptableModule, AdapterComponent } from "./types.ts";

interface UnetShape {
  channels: number[];
  /** Transformer blocks per level; 0 for levels without attention. */
  depth: number[];
  blocksPerLevel: number;
  contextSize: number;
  hasLinearProjection: boolean;
  hasAddEmbedding: boolean;
}
const sd15: UnetShape = {
  channels: [320, 640, 1280, 1280],
  depth: [1, 1, 1, 0],
  blocksPerLevel: 2,
  contextSize: 768,
  hasLinearProjection: false,
  hasAddEmbedding: false,
};
const sdxl: UnetShape = {
  channels: [320, 640, 1280],
  depth: [0, 2, 10],
  blocksPerLevel: 2,
  contextSize: 2048,
  hasLinearProjection: true,
  hasAddEmbedding: true,
};

type Layer = Omit<AdaptableModule, "component">;
const linear = (name: string, inFeatures: number, outFeatures: number): Layer => ({
  name,
  kind: "linear",
  inFeatures,
  outFeatures,
});
const conv = (name: string, inFeatures: number, outFeatures: number, size = 3): Layer => ({
  name,
  kind: "conv",
  inFeatures,
  outFeatures,
  kernel: [size, size],
});

function transformer(name: string, channels: number, depth: number, shape: UnetShape): Layer[] {
  const projection = (side: string) =>
    shape.hasLinearProjection
      ? linear(`${name}.proj_${side}`, channels, channels)
      : conv(`${name}.proj_${side}`, channels, channels, 1);
  const blocks = Array.from({ length: depth }, (_, i) => `${name}.transformer_blocks.${i}`).flatMap((block) => [
    ...[1, 2].flatMap((which) => {
      const context = which === 1 ? channels : shape.contextSize;
      return [
        linear(`${block}.attn${which}.to_q`, channels, channels),
        linear(`${block}.attn${which}.to_k`, context, channels),
        linear(`${block}.attn${which}.to_v`, context, channels),
        linear(`${block}.attn${which}.to_out.0`, channels, channels),
      ];
    }),
    linear(`${block}.ff.net.0.proj`, channels, channels * 8),
    linear(`${block}.ff.net.2`, channels * 4, channels),
  ]);
  return [projection("in"), ...blocks, projection("out")];
}

/** Layers of diffusers' UNet2DConditionModel, or of the original code's UNet, whose blocks are counted through. */
function unetLayers(shape: UnetShape, naming: "diffusers" | "sgm"): Layer[] {
  const isSgm = naming === "sgm";
  const timeSize = shape.channels[0] * 4;
  const residual = (name: string, from: number, to: number): Layer[] => [
    conv(`${name}.${isSgm ? "in_layers.2" : "conv1"}`, from, to),
    conv(`${name}.${isSgm ? "out_layers.3" : "conv2"}`, to, to),
    linear(`${name}.${isSgm ? "emb_layers.1" : "time_emb_proj"}`, timeSize, to),
    ...(from === to ? [] : [conv(`${name}.${isSgm ? "skip_connection" : "conv_shortcut"}`, from, to, 1)]),
  ];
  const first = shape.channels[0];
  const layers = [
    conv(isSgm ? "input_blocks.0.0" : "conv_in", 4, first),
    conv(isSgm ? "out.2" : "conv_out", first, 4),
    linear(isSgm ? "time_embed.0" : "time_embedding.linear_1", first, timeSize),
    linear(isSgm ? "time_embed.2" : "time_embedding.linear_2", timeSize, timeSize),
  ];
  if (shape.hasAddEmbedding)
    layers.push(
      linear(isSgm ? "label_emb.0.0" : "add_embedding.linear_1", 2816, timeSize),
      linear(isSgm ? "label_emb.0.2" : "add_embedding.linear_2", timeSize, timeSize),
    );
  const skips = [first];
  let channels = first;
  let place = 1;
  for (const [level, to] of shape.channels.entries()) {
    const depth = shape.depth[level];
    for (let j = 0; j < shape.blocksPerLevel; j++, place++) {
      layers.push(...residual(isSgm ? `input_blocks.${place}.0` : `down_blocks.${level}.resnets.${j}`, channels, to));
      const attention = isSgm ? `input_blocks.${place}.1` : `down_blocks.${level}.attentions.${j}`;
      if (depth) layers.push(...transformer(attention, to, depth, shape));
      channels = to;
      skips.push(channels);
    }
    if (level < shape.channels.length - 1) {
      const name = isSgm ? `input_blocks.${place++}.0.op` : `down_blocks.${level}.downsamplers.0.conv`;
      layers.push(conv(name, channels, channels));
      skips.push(channels);
    }
  }
  const middleDepth = shape.depth.findLast((depth) => depth > 0)!;
  const middle = isSgm ? "middle_block" : "mid_block";
  layers.push(...residual(isSgm ? `${middle}.0` : `${middle}.resnets.0`, channels, channels));
  layers.push(...transformer(isSgm ? `${middle}.1` : `${middle}.attentions.0`, channels, middleDepth, shape));
  layers.push(...residual(isSgm ? `${middle}.2` : `${middle}.resnets.1`, channels, channels));
  place = 0;
  for (let block = 0; block < shape.channels.length; block++) {
    const level = shape.channels.length - 1 - block;
    const to = shape.channels[level];
    const depth = shape.depth[level];
    for (let j = 0; j <= shape.blocksPerLevel; j++, place++) {
      const name = isSgm ? `output_blocks.${place}.0` : `up_blocks.${block}.resnets.${j}`;
      layers.push(...residual(name, channels + skips.pop()!, to));
      const attention = isSgm ? `output_blocks.${place}.1` : `up_blocks.${block}.attentions.${j}`;
      if (depth) layers.push(...transformer(attention, to, depth, shape));
      channels = to;
      if (level > 0 && j === shape.blocksPerLevel) {
        const upsampler = isSgm
          ? `output_blocks.${place}.${depth ? 2 : 1}.conv`
          : `up_blocks.${block}.upsamplers.0.conv`;
        layers.push(conv(upsampler, channels, channels));
      }
    }
  }
  return layers;
}

const inComponent = (component: AdapterComponent, layers: Layer[]): AdaptableModule[] =>
  layers.map((layer) => ({ component, ...layer }));

function clipLayers(layerCount: number, size: number): Layer[] {
  return Array.from({ length: layerCount }, (_, i) => `text_model.encoder.layers.${i}`).flatMap((layer) => [
    ...["q_proj", "k_proj", "v_proj", "out_proj"].map((name) => linear(`${layer}.self_attn.${name}`, size, size)),
    linear(`${layer}.mlp.fc1`, size, size * 4),
    linear(`${layer}.mlp.fc2`, size * 4, size),
  ]);
}

const sd15Modules = [
  ...inComponent("unet", unetLayers(sd15, "diffusers")),
  ...inComponent("text_encoder", clipLayers(2, 768)),
];
const sdxlModules = [
  ...inComponent("unet", unetLayers(sdxl, "diffusers")),
  ...inComponent("text_encoder", clipLayers(2, 768)),
  ...inComponent("text_encoder_2", clipLayers(2, 1280)),
];

/** The single module a path stands for. */
function wholeModule(index: ModuleIndex, path: string): AdaptableModule | undefined {
  const resolution = index.resolve(path);
  return "target" in resolution && resolution.target.kind === "whole" ? resolution.target.module : undefined;
}

describe("Stable Diffusion 1.5", () => {
  const index = new ModuleIndex(sd15Modules);

  test("the module list is that of the real exported UNet", () => {
    const file = new URL("../../../../test/reference/sd15/tensors.json", import.meta.url);
    const tensors = JSON.parse(readFileSync(file, "utf8")) as [string, number[], number, number, string][];
    const named = tensors.filter(([name, shape]) => name.endsWith(".weight") && shape.length > 1);
    const byName = new Map(sd15Modules.map((module) => [module.name, module]));
    for (const [name, shape] of named) {
      const module = byName.get(name.slice(0, -".weight".length));
      expect([module?.outFeatures, module?.inFeatures, ...(module?.kernel ?? [])], name).toEqual(shape);
    }
    // Anonymous linear weights are stored as [in, out], in no order of names.
    const anonymous = tensors.filter(([name]) => name.startsWith("onnx::MatMul")).map(([, shape]) => shape.join());
    const names = new Set(named.map(([name]) => name.slice(0, -".weight".length)));
    const others = sd15Modules.filter(({ component, name }) => component === "unet" && !names.has(name));
    expect(others.map((module) => `${module.inFeatures},${module.outFeatures}`).sort()).toEqual(anonymous.sort());
    expect(named.length + anonymous.length).toBe(tensors.filter((tensor) => tensor[4] === "weight").length);
  });

  const vectors: [string, string][] = [
    [
      "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
      "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    ],
    [
      "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj",
      "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
    ],
    ["lora_unet_mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in"],
    ["lora_unet_down_blocks_1_resnets_0_conv_shortcut", "down_blocks.1.resnets.0.conv_shortcut"],
    ["lora_unet_down_blocks_0_resnets_1_time_emb_proj", "down_blocks.0.resnets.1.time_emb_proj"],
    ["lora_unet_time_embedding_linear_1", "time_embedding.linear_1"],
    ["lora_te_text_model_encoder_layers_0_self_attn_out_proj", "text_model.encoder.layers.0.self_attn.out_proj"],
    ["lycoris_down_blocks_0_resnets_1_conv2", "down_blocks.0.resnets.1.conv2"],
    ["base_model.model.conv_in", "conv_in"],
    ["base_model.model.unet.conv_in", "conv_in"],
    ["base_model.model.text_model.encoder.layers.1.mlp.fc1", "text_model.encoder.layers.1.mlp.fc1"],
    ["diffusion_model.input_blocks.0.0", "conv_in"],
    [
      "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out",
      "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    ],
    ["text_encoder.text_model.encoder.layers.0.self_attn.to_out", "text_model.encoder.layers.0.self_attn.out_proj"],
    ["text_encoder.text_model.encoder.layers.0.self_attn.to_v", "text_model.encoder.layers.0.self_attn.v_proj"],
    // Level 0 of the up path has no attention: the upsampler follows the residual block at once.
    ["lora_unet_output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"],
    ["lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"],
  ];
  test.each(vectors)("%s is %s", (path, name) => {
    expect(wholeModule(index, path)?.name).toBe(name);
  });

  test("every module is found by its kohya name", () => {
    for (const module of sd15Modules) {
      const prefix = module.component === "unet" ? "lora_unet_" : "lora_te_";
      expect(wholeModule(index, prefix + module.name.replaceAll(".", "_"))).toBe(module);
    }
  });
});

describe("Stable Diffusion XL", () => {
  const index = new ModuleIndex(sdxlModules);
  const vectors: [string, string][] = [
    ["input_blocks_4_1_transformer_blocks_0_attn1_to_q", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"],
    ["output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"],
    ["input_blocks_4_0_in_layers_2", "down_blocks.1.resnets.0.conv1"],
    ["input_blocks_4_0_out_layers_3", "down_blocks.1.resnets.0.conv2"],
    ["input_blocks_4_0_emb_layers_1", "down_blocks.1.resnets.0.time_emb_proj"],
    ["input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"],
    ["input_blocks_0_0", "conv_in"],
    ["out_2", "conv_out"],
    ["label_emb_0_2", "add_embedding.linear_2"],
    ["input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"],
    ["middle_block_1_transformer_blocks_9_attn2_to_k", "mid_block.attentions.0.transformer_blocks.9.attn2.to_k"],
    ["middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"],
  ];
  test.each(vectors)("%s is %s", (path, name) => {
    expect(wholeModule(index, `lora_unet_${path}`)?.name).toBe(name);
  });

  test.each([
    ["SDXL", sdxl],
    ["SD 1.5", sd15],
    ["one block a level", { ...sd15, blocksPerLevel: 1, channels: [48, 96, 144, 144] }],
  ])("the original code's layers of %s are the model's, one to one, with equal shapes", (_, shape) => {
    const modules = inComponent("unet", unetLayers(shape, "diffusers"));
    const own = new ModuleIndex(modules);
    const found = unetLayers(shape, "sgm").map((layer) => {
      const path = `lora_unet_${layer.name.replaceAll(".", "_")}`;
      const module = wholeModule(own, path);
      expect(module, layer.name).toMatchObject({ ...layer, name: expect.any(String) });
      expect(wholeModule(own, `diffusion_model.${layer.name}`)).toBe(module);
      return module;
    });
    expect(new Set(found)).toEqual(new Set(modules));
    expect(found.length).toBe(modules.length);
  });

  test("a list without residual blocks still counts blocks right", () => {
    const attention = sdxlModules.filter(({ name }) => name.includes("attn"));
    const own = new ModuleIndex(attention);
    expect(wholeModule(own, "lora_unet_input_blocks_8_1_transformer_blocks_0_attn1_to_q")?.name).toBe(
      "down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q",
    );
  });

  test("text encoders are told apart, and their absence is a reason", () => {
    const path = "text_model_encoder_layers_1_mlp_fc2";
    expect(wholeModule(index, `lora_te1_${path}`)).toMatchObject({ component: "text_encoder", inFeatures: 3072 });
    expect(wholeModule(index, `lora_te2_${path}`)).toMatchObject({ component: "text_encoder_2", inFeatures: 5120 });
    expect(wholeModule(index, "text_encoder_2.text_model.encoder.layers.1.mlp.fc2")?.inFeatures).toBe(5120);
    const raw = index.resolve("base_model.model.text_model.encoder.layers.1.mlp.fc2");
    expect(raw).toMatchObject({ reason: expect.stringMatching(/several modules/) });
    const unetOnly = new ModuleIndex(sdxlModules.filter(({ component }) => component === "unet"));
    expect(unetOnly.resolve(`lora_te2_${path}`)).toMatchObject({ reason: expect.stringMatching(/text_encoder_2/) });
    expect(unetOnly.resolve("text_encoder_4.x")).toMatchObject({ reason: expect.stringMatching(/component/) });
    expect(index.resolve("lora_unet_nothing")).toMatchObject({ reason: expect.stringMatching(/no module.*nothing/) });
  });

  test("OpenCLIP names", () => {
    const name = "transformer.resblocks.0.mlp.c_fc";
    const encoder = new ModuleIndex(sdxlModules.filter(({ component }) => component === "text_encoder_2"));
    expect(wholeModule(encoder, name)?.name).toBe("text_model.encoder.layers.0.mlp.fc1");
    expect(encoder.resolve("lora_te2_transformer_resblocks_0_attn_in_proj")).toMatchObject({
      target: {
        kind: "split",
        modules: [{ name: /q_proj/ }, { name: /k_proj/ }, { name: /v_proj/ }].map((m) => ({
          name: expect.stringMatching(m.name),
        })),
      },
    });
  });
});

test("names that differ only in dots and underscores are found by their dots and ambiguous without", () => {
  const index = new ModuleIndex(inComponent("unet", [linear("a.b_c", 1, 1), linear("a_b.c", 2, 2)]));
  expect(wholeModule(index, "unet.a.b_c")?.inFeatures).toBe(1);
  expect(wholeModule(index, "unet.a_b.c")?.inFeatures).toBe(2);
  expect(index.resolve("lora_unet_a_b_c")).toMatchObject({ reason: expect.stringMatching(/several/) });
});

test("transformers: fused names for separate projections and separate names for fused ones", () => {
  const separate = new ModuleIndex(
    inComponent(
      "transformer",
      ["to_q", "to_k", "to_v"].map((name) => linear(`blocks.0.attn.${name}`, 8, 8)),
    ),
  );
  expect(separate.resolve("transformer.blocks.0.attn.qkv")).toMatchObject({ target: { kind: "split" } });
  expect(separate.resolve("diffusion_model.blocks.0.attn.to_kv")).toMatchObject({
    target: { kind: "split", modules: [{ name: "blocks.0.attn.to_k" }, { name: "blocks.0.attn.to_v" }] },
  });
  const fused = new ModuleIndex(inComponent("transformer", [linear("blocks.0.attn.to_qkv", 8, 24)]));
  expect(fused.resolve("lora_unet_blocks_0_attn_to_k")).toMatchObject({
    target: { kind: "slice", index: 1, count: 3 },
  });
});
