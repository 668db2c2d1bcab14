import type { AdaptableModule } from "../types.ts";
import type { Alias, NamingConvention } from "./convention.ts";
import type { AdapterTarget } from "./target.ts";

/** Projections that some models and files keep in one weight, in its order, and what that weight is then called. */
const fusions: readonly {
  readonly parts: readonly string[];
  readonly fused: readonly string[];
  /** Outputs of the parts where they differ. */
  readonly sizes?: (fused: AdaptableModule) => readonly number[];
}[] = [
  ...[
    ["to_q", "to_k", "to_v"],
    ["q_proj", "k_proj", "v_proj"],
    ["query", "key", "value"],
  ].map((parts) => ({ parts, fused: ["to_qkv", "qkv", "qkv_proj", "in_proj", "in_proj_weight"] })),
  { parts: ["add_q_proj", "add_k_proj", "add_v_proj"], fused: ["to_added_qkv", "add_qkv_proj"] },
  { parts: ["to_k", "to_v"], fused: ["to_kv", "kv"] },
  {
    // Blocks whose attention and feed-forward read the same tensor: the projections are as wide as it.
    parts: ["to_q", "to_k", "to_v", "proj_mlp"],
    fused: ["to_qkv_mlp", "to_qkv_mlp_proj"],
    sizes: ({ inFeatures, outFeatures }) => [inFeatures, inFeatures, inFeatures, outFeatures - 3 * inFeatures],
  },
];

/** Names of fused projections in models that keep them apart, and of separate ones in models that fuse them. */
export const fusedProjections: NamingConvention = {
  name: "fused projections",
  *aliases({ modules }): Generator<Alias> {
    for (const module of modules.values()) {
      const dot = module.name.lastIndexOf(".") + 1;
      const parent = module.name.slice(0, dot);
      const last = module.name.slice(dot);
      for (const { parts, fused, sizes } of fusions) {
        if (last === parts[0]) {
          const siblings = parts.map((part) => modules.get(parent + part));
          if (areSiblings(siblings))
            for (const name of fused) yield [parent + name, { kind: "split", modules: siblings }];
        }
        if (fused.includes(last)) yield* slicesOf(module, parent, parts, sizes?.(module));
      }
    }
  },
};

/** Whether all are there and read the same tensor. */
function areSiblings(modules: readonly (AdaptableModule | undefined)[]): modules is readonly AdaptableModule[] {
  return modules.every((module) => module !== undefined && module.inFeatures === modules[0]?.inFeatures);
}

function* slicesOf(
  module: AdaptableModule,
  parent: string,
  parts: readonly string[],
  sizes?: readonly number[],
): Generator<Alias> {
  for (const [index, part] of parts.entries()) {
    const target: AdapterTarget = { kind: "slice", module, index, count: parts.length, sizes };
    yield [parent + part, target];
    // A block's feed-forward half is named beside its attention where the two are apart.
    if (part === "proj_mlp" && parent.endsWith("attn.")) yield [parent.slice(0, -"attn.".length) + part, target];
  }
}
