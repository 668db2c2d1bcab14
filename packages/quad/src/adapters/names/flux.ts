import { type Alias, type KnownNames, type NamingConvention, renamedLayers } from "./convention.ts";
import { targetModules } from "./target.ts";

/** Layers of a double block: `img` is the picture's stream, `txt` the text's. */
const doubleBlock = {
  "attn.to_q": "img_attn.to_q",
  "attn.to_k": "img_attn.to_k",
  "attn.to_v": "img_attn.to_v",
  "attn.to_qkv": "img_attn.qkv",
  "attn.to_out.0": "img_attn.proj",
  "ff.net.0.proj": "img_mlp.0",
  "ff.net.2": "img_mlp.2",
  "norm1.linear": "img_mod.lin",
  "attn.to_added_qkv": "txt_attn.qkv",
  "attn.to_add_out": "txt_attn.proj",
  "ff_context.net.0.proj": "txt_mlp.0",
  "ff_context.net.2": "txt_mlp.2",
  "norm1_context.linear": "txt_mod.lin",
};

const singleBlock = {
  "attn.to_qkv_mlp": "linear1",
  "attn.to_qkv_mlp_proj": "linear1",
  proj_out: "linear2",
  "norm.linear": "modulation.lin",
};

const single = {
  x_embedder: "img_in",
  context_embedder: "txt_in",
  "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
  "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
  "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
  "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
  "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
  "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
  proj_out: "final_layer.linear",
};

/**
 * Names of Flux's layers in the code of Black Forest Labs, which sd-scripts and ComfyUI keep: one weight for query, key and
 * value, in single blocks for the feed-forward's first layer, too.
 */
export const flux: NamingConvention = {
  name: "original Flux",
  *aliases(known): Generator<Alias> {
    yield* singleBlockInputs(known);
    yield* renamedLayers(
      known,
      [
        { own: "transformer_blocks", other: "double_blocks", layers: doubleBlock },
        { own: "single_transformer_blocks", other: "single_blocks", layers: singleBlock },
      ],
      single,
    );
    yield* swappedModulation(known);
  },
};

/** `linear1` of single blocks that keep its parts apart: query, key, value and the feed-forward's first layer. */
function* singleBlockInputs({ modules, targets }: KnownNames): Generator<Alias> {
  for (const module of modules.values()) {
    const block = /^single_transformer_blocks\.(\d+)\.proj_mlp$/.exec(module.name)?.[1];
    const projections = targets.get(`single_transformer_blocks.${block}.attn.to_qkv`);
    if (block && projections)
      yield [`single_blocks.${block}.linear1`, { kind: "split", modules: [...targetModules(projections), module] }];
  }
}

/** The last modulation gives shift and scale in the original, scale and shift in diffusers (`swap_scale_shift` there). */
export function* swappedModulation({ modules }: KnownNames): Generator<Alias> {
  const module = modules.get("norm_out.linear");
  if (module && module.outFeatures % 2 === 0) yield ["final_layer.adaLN_modulation.1", { kind: "swapped", module }];
}
