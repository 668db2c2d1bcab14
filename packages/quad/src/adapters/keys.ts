import { methods } from "./methods/index.ts";
import type { LayerKey } from "./methods/method.ts";
import { refusedMethod } from "./methods/refused.ts";

/** What a key of an adapter file stands for. */
export type ParsedKey =
  | ({ readonly kind: "part" } & LayerKey)
  | { readonly kind: "refused"; readonly method: string }
  /** `isKnown` says that the key is of a sort which stands beside LoRA weights without being part of their product. */
  | { readonly kind: "unsupported"; readonly reason: string; readonly isKnown: boolean };

const unsupported: readonly (readonly [RegExp, string])[] = [
  [/\.diff$/, "a full weight difference, not a low-rank one"],
  [/\.diff_b$/, "a bias difference, not a low-rank weight"],
  [/\.[wb]_norm$/, "a change of a normalization layer, not a low-rank weight"],
  [/\.norm\.(query_norm|key_norm)\.scale$/, "a normalization layer's scale, not a low-rank weight"],
  [/\.norm_(added_)?[qk]\.weight$/, "a normalization layer's scale, not a low-rank weight"],
  [/\.set_weight$/, "a replaced weight, not a low-rank one"],
  [/\.reshape_weight$/, "resizes the layer's weight"],
  [/\.lora_(up|down|A|B)(\.[^.]+)?\.bias$/, "a bias inside the LoRA, which an adapter of two factors cannot hold"],
  [/\.lora_embedding_[AB](\.|$)/, "a LoRA of an embedding table"],
  [/^bundle_emb\./, "a bundled textual inversion embedding"],
  [/\.modules_to_save\./, "a fully trained module, not a low-rank one"],
  [/\.base_layer\.(weight|bias)$/, "the layer's own weight, not a change of it"],
];

/** Longer than any module's path: what patterns cost grows with the key. */
const longestKey = 1000;

/** Takes a key of an adapter file apart, by its suffix alone. */
export function parseKey(key: string): ParsedKey {
  if (key.length > longestKey)
    return { kind: "unsupported", reason: `a name of ${key.length} characters`, isKnown: true };
  const method = refusedMethod(key);
  if (method) return { kind: "refused", method };
  for (const { parse } of methods) {
    const parsed = parse(key);
    if (parsed) return { kind: "part", ...parsed };
  }
  const reason = unsupported.find(([pattern]) => pattern.test(key))?.[1];
  return { kind: "unsupported", reason: reason ?? "no suffix of a known LoRA format", isKnown: reason !== undefined };
}
