import { type Alias, type NamingConvention, renamedLayers } from "./convention.ts";

const block = {
  "attn1.to_qkv": "attn.qkv",
  "attn1.to_out.0": "attn.proj",
  "attn2.to_q": "cross_attn.q_linear",
  "attn2.to_kv": "cross_attn.kv_linear",
  "attn2.to_out.0": "cross_attn.proj",
  "ff.net.0.proj": "mlp.fc1",
  "ff.net.2": "mlp.fc2",
  "ff.conv_inverted": "mlp.inverted_conv.conv",
  "ff.conv_depth": "mlp.depth_conv.conv",
  "ff.conv_point": "mlp.point_conv.conv",
};

const single = {
  "pos_embed.proj": "x_embedder.proj",
  "patch_embed.proj": "x_embedder.proj",
  "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
  "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
  "adaln_single.linear": "t_block.1",
  "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
  "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
  "time_embed.linear": "t_block.1",
  "caption_projection.linear_1": "y_embedder.y_proj.fc1",
  "caption_projection.linear_2": "y_embedder.y_proj.fc2",
};

/** Names of PixArt's and Sana's layers in their original code. */
export const pixart: NamingConvention = {
  name: "original PixArt and Sana",
  *aliases(known): Generator<Alias> {
    yield* renamedLayers(known, [{ own: "transformer_blocks", other: "blocks", layers: block }], single);
  },
};
