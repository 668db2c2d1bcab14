import { residualBlocksPerLevel, sgmNames } from "./sgm-names.ts";
import type { AdaptableModule, AdapterComponent } from "./types.ts";

/** What a file's module stands for in the model. */
export type AdapterTarget =
  | { readonly kind: "whole"; readonly module: AdaptableModule }
  /** Fused in the file, separate in the model: the modules take the rows of `up` one after the other. */
  | { readonly kind: "split"; readonly modules: readonly AdaptableModule[] }
  /** Separate in the file, fused in the model: part `index` of `count` of the module's outputs. */
  | { readonly kind: "slice"; readonly module: AdaptableModule; readonly index: number; readonly count: number };

/** The target, or the reason why there is none. */
export type Resolution = { readonly target: AdapterTarget } | { readonly reason: string };

/** Projections that some models and files keep in one weight, in its order, and what that weight is then called. */
const fusedProjections: readonly { parts: readonly string[]; fused: readonly string[] }[] = [
  ...[
    ["to_q", "to_k", "to_v"],
    ["q_proj", "k_proj", "v_proj"],
    ["query", "key", "value"],
  ].map((parts) => ({ parts, fused: ["to_qkv", "qkv", "qkv_proj", "in_proj", "in_proj_weight"] })),
  { parts: ["add_q_proj", "add_k_proj", "add_v_proj"], fused: ["to_added_qkv", "add_qkv_proj"] },
  { parts: ["to_k", "to_v"], fused: ["to_kv", "kv"] },
];

const denoisers: readonly AdapterComponent[] = ["unet", "transformer"];
const anyComponent: readonly AdapterComponent[] = ["unet", "transformer", "text_encoder", "text_encoder_2"];

/** Prefixes in the order they are tried; a longer one stands before its own beginning. */
const prefixes: readonly (readonly [string, readonly AdapterComponent[]])[] = [
  ["model.diffusion_model.", denoisers],
  ["diffusion_model.", denoisers],
  ["lora_unet_", denoisers],
  ["lora_transformer_", ["transformer"]],
  ["lora_te1_", ["text_encoder"]],
  ["lora_te2_", ["text_encoder_2"]],
  ["lora_te_", ["text_encoder"]],
  ["lycoris_unet_", denoisers],
  ["lycoris_", anyComponent],
  ["unet.", ["unet"]],
  ["text_encoder.", ["text_encoder"]],
  ["text_encoder_2.", ["text_encoder_2"]],
  ["transformer.", ["transformer"]],
];

/** Prefixes of components that no supported pipeline has. */
const foreignPrefixes = /^(lora_te3_|text_encoder_3\.|text_encoder_4\.|vae\.|lora_prior_|lora_controlnet_)/;

/** All names of one component's modules that files are known to use. */
class ComponentNames {
  readonly #dotted = new Map<string, AdapterTarget>();
  /** kohya's spelling, every dot an underscore; undefined where two modules would share it. */
  readonly #flat = new Map<string, AdapterTarget | undefined>();

  constructor(component: AdapterComponent, modules: readonly AdaptableModule[]) {
    for (const module of modules) this.#dotted.set(module.name, { kind: "whole", module });
    this.#flatten(this.#dotted);
    // Names of the model itself win over derived ones, and earlier derivations over later ones.
    const derived = new Map<string, AdapterTarget>();
    const derive = (name: string, target: AdapterTarget) => {
      if (!this.#dotted.has(name) && !derived.has(name)) derived.set(name, target);
    };
    for (const [name, target] of fusionTargets(modules)) derive(name, target);
    for (const [name, target] of [...this.#dotted, ...derived])
      for (const alias of processorNames(name)) derive(alias, target);
    const blocks = residualBlocksPerLevel(this.#dotted.keys());
    for (const [name, target] of [...this.#dotted, ...derived])
      for (const alias of component.startsWith("text_encoder") ? openClipNames(name) : sgmNames(name, blocks))
        derive(alias, target);
    this.#flatten(derived);
    for (const [name, target] of derived) this.#dotted.set(name, target);
  }

  #flatten(names: ReadonlyMap<string, AdapterTarget>): void {
    const added = new Map<string, AdapterTarget | undefined>();
    for (const [name, target] of names) {
      const flat = name.replaceAll(".", "_");
      if (!this.#flat.has(flat)) added.set(flat, added.has(flat) && added.get(flat) !== target ? undefined : target);
    }
    for (const [flat, target] of added) this.#flat.set(flat, target);
  }

  find(name: string): AdapterTarget | "ambiguous" | undefined {
    const exact = this.#dotted.get(name);
    if (exact) return exact;
    const flat = name.replaceAll(".", "_");
    return this.#flat.has(flat) ? (this.#flat.get(flat) ?? "ambiguous") : undefined;
  }
}

/** Finds a model's modules by the names that adapter files give them. Every name is derived from the model's own. */
export class ModuleIndex {
  readonly #components = new Map<AdapterComponent, ComponentNames>();

  constructor(modules: readonly AdaptableModule[]) {
    for (const component of anyComponent) {
      const own = modules.filter((module) => module.component === component);
      if (own.length > 0) this.#components.set(component, new ComponentNames(component, own));
    }
  }

  /** @param path - A key without its suffix, such as `lora_unet_conv_in` or `base_model.model.unet.conv_in`. */
  resolve(path: string): Resolution {
    const stripped = path.replace(/^(base_model\.model\.)+/, "");
    if (foreignPrefixes.test(stripped)) return { reason: "belongs to a component that the model does not have" };
    let missing: string | undefined;
    for (const [prefix, components] of [...prefixes, ["", anyComponent] as const]) {
      if (!stripped.startsWith(prefix)) continue;
      const name = stripped.slice(prefix.length);
      const found = this.#find(name, components);
      if (found) return found;
      if (prefix && !components.some((component) => this.#components.has(component)))
        missing ??= `belongs to the ${components[0]}, of which the model has no adaptable modules`;
      missing ??= `the model has no module of the name ${name}`;
    }
    return { reason: missing! };
  }

  #find(name: string, components: readonly AdapterComponent[]): Resolution | undefined {
    const hits = components.flatMap((component) => this.#components.get(component)?.find(name) ?? []);
    if (hits.length === 0) return undefined;
    const [target] = hits;
    if (hits.length > 1 || target === "ambiguous" || !target)
      return { reason: `several modules of the model could be ${name}` };
    return { target };
  }
}

/** Names of fused projections in models that keep them apart, and of separate ones in models that fuse them. */
function* fusionTargets(modules: readonly AdaptableModule[]): Generator<[string, AdapterTarget]> {
  const byName = new Map(modules.map((module) => [module.name, module]));
  for (const module of modules) {
    const dot = module.name.lastIndexOf(".") + 1;
    const parent = module.name.slice(0, dot);
    const last = module.name.slice(dot);
    for (const { parts, fused } of fusedProjections) {
      if (last === parts[0]) {
        const siblings = parts.map((part) => byName.get(parent + part));
        if (siblings.every((sibling) => sibling !== undefined && sibling.inFeatures === module.inFeatures)) {
          const target = { kind: "split", modules: siblings as AdaptableModule[] } as const;
          for (const name of fused) yield [parent + name, target];
        }
      }
      if (fused.includes(last))
        for (const [index, part] of parts.entries())
          yield [parent + part, { kind: "slice", module, index, count: parts.length }];
    }
  }
}

/** What diffusers' attention processors and old text encoder LoRAs call a layer. */
function processorNames(name: string): string[] {
  const match = /^(.+)\.(to_out\.0|[qkv]_proj|out_proj)$/.exec(name);
  if (!match) return [];
  const [, parent, last] = match as unknown as [string, string, string];
  return [`${parent}.${last.startsWith("to_out") || last === "out_proj" ? "to_out" : `to_${last[0]}`}`];
}

/** OpenCLIP's name of a layer in a text encoder of `transformers`. */
function openClipNames(name: string): string[] {
  const match = /^(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn|mlp)\.(.+)$/.exec(name);
  if (!match) return [];
  const [, layer, kind, rest] = match as unknown as [string, string, string, string];
  if (kind === "self_attn") return [`transformer.resblocks.${layer}.attn.${rest}`];
  const renamed = rest === "fc1" ? "c_fc" : rest === "fc2" ? "c_proj" : undefined;
  return renamed ? [`transformer.resblocks.${layer}.mlp.${renamed}`] : [];
}
