import { type Alias, type KnownNames, type NamingConvention, renamedLayers } from "./convention.ts";

const jointBlock = {
  "attn.to_qkv": "x_block.attn.qkv",
  "attn.to_out.0": "x_block.attn.proj",
  "attn2.to_qkv": "x_block.attn2.qkv",
  "attn2.to_out.0": "x_block.attn2.proj",
  "ff.net.0.proj": "x_block.mlp.fc1",
  "ff.net.2": "x_block.mlp.fc2",
  "norm1.linear": "x_block.adaLN_modulation.1",
  "attn.to_added_qkv": "context_block.attn.qkv",
  "attn.to_add_out": "context_block.attn.proj",
  "ff_context.net.0.proj": "context_block.mlp.fc1",
  "ff_context.net.2": "context_block.mlp.fc2",
};

const single = {
  "pos_embed.proj": "x_embedder.proj",
  "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
  "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
  "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
  "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
};

/** Names of Stable Diffusion 3's layers in the code of Stability AI, which sd-scripts and ComfyUI keep. */
export const sd3: NamingConvention = {
  name: "original Stable Diffusion 3",
  *aliases(known): Generator<Alias> {
    yield* renamedLayers(known, [{ own: "transformer_blocks", other: "joint_blocks", layers: jointBlock }], single);
    yield* contextModulation(known);
  },
};

/**
 * The text stream's modulation. The last block's gives shift and scale alone, in the other order than diffusers' (as the last
 * layer's does); the others' have gates, too, and the same order.
 */
function* contextModulation({ modules }: KnownNames): Generator<Alias> {
  for (const module of modules.values()) {
    const block = /^transformer_blocks\.(\d+)\.norm1_context\.linear$/.exec(module.name)?.[1];
    if (!block) continue;
    const kind = module.outFeatures === 2 * module.inFeatures ? "swapped" : "whole";
    yield [`joint_blocks.${block}.context_block.adaLN_modulation.1`, { kind, module }];
  }
}
