import type { AdapterFormat } from "./types.ts";

/** The tensors that make up one LoRA layer; `mid` is the core of a Tucker-decomposed convolution. */
export type AdapterPart = "down" | "up" | "mid" | "alpha";

/** What a key of an adapter file stands for. */
export type ParsedKey =
  | {
      readonly kind: "part";
      readonly part: AdapterPart;
      /** The key without its suffix: prefix and module, still in the file's spelling. */
      readonly module: string;
      /** Undefined for alphas, which several formats share. */
      readonly format?: AdapterFormat;
    }
  | { readonly kind: "refused"; readonly method: string }
  | { readonly kind: "unsupported"; readonly reason: string };

/** Methods whose change is not a product of two factors; half of one would be a wrong picture rather than a weaker one. */
const refusals: readonly (readonly [RegExp, string])[] = [
  [/\.hada_(w1|w2|t1|t2)/, "LoHa"],
  [/\.lokr_(w1|w2|t1|t2)/, "LoKr"],
  [/\.(dora_scale|lora_magnitude_vector)(\.|$)/, "DoRA"],
  [/\.(oft_blocks|oft_diag|oft_R|oft_r|boft_R|boft_s)(\.|$)/, "OFT"],
  [/\.(a1|a2|b1|b2)\.weight$/, "GLoRA"],
  [/\.(on_input|ia3_l)(\.|$)/, "IA3"],
];

const unsupported: readonly (readonly [RegExp, string])[] = [
  [/\.diff$/, "a full weight difference, not a low-rank one"],
  [/\.diff_b$/, "a bias difference, not a low-rank weight"],
  [/\.[wb]_norm$/, "a change of a normalization layer, not a low-rank weight"],
  [/\.set_weight$/, "a replaced weight, not a low-rank one"],
  [/\.reshape_weight$/, "resizes the layer's weight"],
  [/\.lora_(up|down|A|B)(\.[^.]+)?\.bias$/, "a bias inside the LoRA"],
  [/\.lora_embedding_[AB](\.|$)/, "a LoRA of an embedding table"],
  [/^bundle_emb\./, "a bundled textual inversion embedding"],
  [/\.modules_to_save\./, "a fully trained module, not a low-rank one"],
];

/** Takes a key of an adapter file apart, by its suffix alone. */
export function parseKey(key: string): ParsedKey {
  for (const [pattern, method] of refusals) if (pattern.test(key)) return { kind: "refused", method };

  const kohya = /^(.+)\.lora_(down|up|mid)\.weight$/.exec(key);
  if (kohya) {
    const format = key.startsWith("lycoris_") ? "lycoris" : "kohya";
    return { kind: "part", part: kohya[2] as AdapterPart, module: kohya[1], format };
  }
  // PEFT puts the adapter's name in between unless it was saved for sharing: `.lora_A.default.weight`.
  const peft = /^(.+)\.lora_([AB])(?:\.[^.]+)??(?:\.weight)?$/.exec(key);
  if (peft && !key.endsWith(".bias"))
    return { kind: "part", part: peft[2] === "A" ? "down" : "up", module: peft[1], format: "peft" };

  const diffusers = /^(.+)\.lora(?:_linear_layer)?\.(down|up)\.weight$/.exec(key);
  if (diffusers) return { kind: "part", part: diffusers[2] as AdapterPart, module: diffusers[1], format: "diffusers" };
  // diffusers' attention processors: `attn1.processor.to_q_lora.down.weight` adapts `attn1.to_q`.
  const processor = /^(.+?)(?:\.processor)?\.([a-z_]+)_lora\.(down|up)\.weight$/.exec(key);
  if (processor)
    return {
      kind: "part",
      part: processor[3] as AdapterPart,
      module: `${processor[1]}.${processor[2]}`,
      format: "diffusers",
    };
  const alpha = /^(.+?)(?:\.processor)?\.alpha$/.exec(key);
  if (alpha) return { kind: "part", part: "alpha", module: alpha[1].replace(/_lora$/, "") };

  for (const [pattern, reason] of unsupported) if (pattern.test(key)) return { kind: "unsupported", reason };
  return { kind: "unsupported", reason: "no suffix of a known LoRA format" };
}
