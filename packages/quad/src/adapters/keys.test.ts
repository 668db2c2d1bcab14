import { describe, expect, test } from "vitest";
import { parseKey } from "./keys.ts";

describe("parseKey", () => {
  const attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
  const parts: [string, string, string, string | undefined][] = [
    ["lora_unet_conv_in.lora_down.weight", "down", "lora_unet_conv_in", "kohya"],
    ["lora_unet_conv_in.lora_up.weight", "up", "lora_unet_conv_in", "kohya"],
    ["lora_unet_conv_in.lora_mid.weight", "mid", "lora_unet_conv_in", "kohya"],
    ["lora_unet_conv_in.alpha", "alpha", "lora_unet_conv_in", undefined],
    ["lycoris_conv_in.lora_down.weight", "down", "lycoris_conv_in", "lycoris"],
    [`unet.${attention}.processor.to_q_lora.down.weight`, "down", `unet.${attention}.to_q`, "diffusers"],
    [`unet.${attention}.processor.to_out_lora.up.weight`, "up", `unet.${attention}.to_out`, "diffusers"],
    ["text_encoder.a.self_attn.to_out_lora.up.weight", "up", "text_encoder.a.self_attn.to_out", "diffusers"],
    [`unet.${attention}.to_out.0.lora.down.weight`, "down", `unet.${attention}.to_out.0`, "diffusers"],
    ["text_encoder.a.q_proj.lora_linear_layer.up.weight", "up", "text_encoder.a.q_proj", "diffusers"],
    [`unet.${attention}.to_q.lora_A.weight`, "down", `unet.${attention}.to_q`, "peft"],
    ["base_model.model.conv_in.lora_B.default.weight", "up", "base_model.model.conv_in", "peft"],
    ["base_model.model.conv_in.lora_A.default_0.weight", "down", "base_model.model.conv_in", "peft"],
    ["base_model.model.conv_in.lora_A", "down", "base_model.model.conv_in", "peft"],
    ["base_model.model.conv_in.lora_E", "lora_E", "base_model.model.conv_in", "peft"],
    ["base_model.model.conv_in.ranknum", "ranknum", "base_model.model.conv_in", "peft"],
    ["lora_unet_conv_in.hada_w1_a", "hada_w1_a", "lora_unet_conv_in", "lycoris"],
    ["lora_unet_conv_in.hada_t2", "hada_t2", "lora_unet_conv_in", "lycoris"],
    ["lycoris_conv_in.lokr_w1", "lokr_w1", "lycoris_conv_in", "lycoris"],
    ["base_model.model.conv_in.lokr_w2_b.default", "lokr_w2_b", "base_model.model.conv_in", "peft"],
    ["double_blocks.0.processor.qkv_lora1.down.weight", "down", "double_blocks.0.processor.qkv_lora1", "diffusers"],
    ["single_blocks.0.processor.proj_lora.up.weight", "up", "single_blocks.0.proj", "diffusers"],
    [`unet.${attention}.processor.to_q_lora.alpha`, "alpha", `unet.${attention}.to_q`, undefined],
    [`unet.${attention}.to_q_lora.alpha`, "alpha", `unet.${attention}.to_q`, undefined],
    [`unet.${attention}.processor.to_q_lora.down.weight.alpha`, "alpha", `unet.${attention}.to_q`, undefined],
    [`unet.${attention}.to_q.lora.alpha`, "alpha", `unet.${attention}.to_q`, undefined],
  ];
  test.each(parts)("%s", (key, part, module, format) => {
    expect(parseKey(key)).toEqual({ kind: "part", part, module, format });
  });

  const refused: [string, string][] = [
    ["lora_unet_conv_in.dora_scale", "DoRA"],
    ["base_model.model.q.lora_magnitude_vector", "DoRA"],
    ["base_model.model.q.lora_magnitude_vector.default.weight", "DoRA"],
    ["lora_unet_conv_in.oft_blocks", "OFT"],
    ["lora_unet_conv_in.a1.weight", "GLoRA"],
    ["lora_unet_conv_in.b2.weight", "GLoRA"],
    ["lora_unet_conv_in.on_input", "IA3"],
    ["base_model.model.q.ia3_l", "IA3"],
    ["base_model.model.q.boft_R", "BOFT"],
    ["base_model.model.q.default_lora_latent_mapping.weight", "LoRA-XS"],
    ["base_model.vera_A", "VeRA"],
    ["base_model.model.q.vera_lambda_d", "VeRA"],
    ["base_model.model.q.hra_u", "HRA"],
    ["base_model.model.q.lora_A.0", "DyLoRA"],
    ["lora_unet_q.lora_ups.0.weight", "mixture-of-experts LoRA"],
  ];
  test.each(refused)("%s is refused", (key, method) => {
    expect(parseKey(key)).toEqual({ kind: "refused", method });
  });

  const unsupported: [string, RegExp][] = [
    ["lora_unet_conv_in.diff", /weight difference/],
    ["lora_unet_conv_in.diff_b", /bias difference/],
    ["lora_unet_norm.w_norm", /normalization/],
    ["lora_unet_norm.b_norm", /normalization/],
    ["x.lora_B.bias", /bias inside/],
    ["x.lora_up.bias", /bias inside/],
    ["x.lora_B.default.bias", /bias inside/],
    ["x.lora_embedding_A", /embedding/],
    ["conv_in.weight", /no suffix/],
    ["double_blocks.0.img_attn.norm.query_norm.scale", /normalization/],
    ["q.base_layer.weight", /own weight/],
    [`${"a.".repeat(1000)}lora_A.weight`, /2013 characters/],
    ["", /no suffix/],
  ];
  test.each(unsupported)("%s is unsupported, with a reason", (key, reason) => {
    const parsed = parseKey(key);
    expect(parsed.kind).toBe("unsupported");
    expect(parsed.kind === "unsupported" && parsed.reason).toMatch(reason);
  });
});
