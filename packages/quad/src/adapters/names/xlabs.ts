import { type Alias, type NamingConvention, renamedLayers } from "./convention.ts";

/** XLabs' attention processors for Flux: `lora1` adapts the picture's stream, `lora2` the text's. */
export const xlabs: NamingConvention = {
  name: "XLabs",
  *aliases(known): Generator<Alias> {
    yield* renamedLayers(known, [
      {
        own: "transformer_blocks",
        other: "double_blocks",
        layers: {
          "attn.to_qkv": "processor.qkv_lora1",
          "attn.to_out.0": "processor.proj_lora1",
          "attn.to_added_qkv": "processor.qkv_lora2",
          "attn.to_add_out": "processor.proj_lora2",
        },
      },
      {
        own: "single_transformer_blocks",
        other: "single_blocks",
        layers: { "attn.to_qkv": "qkv", proj_out: "proj" },
      },
    ]);
  },
};
