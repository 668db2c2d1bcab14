import { conventions } from "./names/index.ts";
import { allComponents, denoisers, foreignPrefixes, prefixes, textEncoders } from "./names/prefixes.ts";
import { type AdapterTarget, wholeTarget } from "./names/target.ts";
import type { AdaptableModule, AdapterComponent } from "./types.ts";

/** The target, or the reason why there is none and the components that the name could belong to. */
export type Resolution =
  | { readonly target: AdapterTarget }
  | { readonly reason: string; readonly components: readonly AdapterComponent[] };

/** All names of one component's modules that files are known to use. */
class ComponentNames {
  readonly #dotted = new Map<string, AdapterTarget>();
  /** kohya's spelling, every dot an underscore; undefined where two modules would share it. */
  readonly #flat = new Map<string, AdapterTarget | undefined>();

  constructor(component: AdapterComponent, own: readonly AdaptableModule[]) {
    const modules = new Map(own.map((module) => [module.name, module]));
    for (const [name, module] of modules) this.#dotted.set(name, wholeTarget(module));
    this.#flatten(this.#dotted);
    const derived = new Map<string, AdapterTarget>();
    for (const convention of conventions) {
      const aliases = [...convention.aliases({ component, modules, targets: this.#dotted })];
      for (const [name, target] of aliases) {
        if (this.#dotted.has(name)) continue;
        this.#dotted.set(name, target);
        derived.set(name, target);
      }
    }
    this.#flatten(derived);
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

/** Names without a prefix are the denoiser's where it has them: a ControlNet's layers are called as its UNet's. */
const bare: readonly (readonly [string, readonly AdapterComponent[]])[] = [
  ["", denoisers],
  ["", textEncoders],
  ["", ["controlnet"]],
];

/** Finds a model's modules by the names that adapter files give them. Every name is derived from the model's own. */
export class ModuleIndex {
  readonly #components = new Map<AdapterComponent, ComponentNames>();

  constructor(modules: readonly AdaptableModule[]) {
    for (const component of allComponents) {
      const own = modules.filter((module) => module.component === component);
      if (own.length > 0) this.#components.set(component, new ComponentNames(component, own));
    }
  }

  /**
   * @param path - A key without its suffix, such as `lora_unet_conv_in` or `base_model.model.unet.conv_in`.
   * @param within - The only component that it can belong to, where the place of the file says so.
   */
  resolve(path: string, within?: AdapterComponent): Resolution {
    const stripped = withoutWrapper(path);
    if (foreignPrefixes.some((prefix) => stripped.startsWith(prefix)))
      return { reason: "belongs to a component that the model does not have", components: [] };
    let missing: Resolution | undefined;
    for (const [prefix, possible] of [...prefixes, ...bare]) {
      if (!stripped.startsWith(prefix)) continue;
      const components = within ? possible.filter((component) => component === within) : possible;
      const name = stripped.slice(prefix.length);
      const found = this.#find(name, components);
      if (found) return found;
      missing ??= { reason: this.#reason(prefix, name, possible), components: prefix ? possible : allComponents };
    }
    return missing!;
  }

  #reason(prefix: string, name: string, components: readonly AdapterComponent[]): string {
    return prefix && !components.some((component) => this.#components.has(component))
      ? `belongs to the ${components[0]}, of which the model has no adaptable modules`
      : `the model has no module of the name ${name}`;
  }

  #find(name: string, components: readonly AdapterComponent[]): Resolution | undefined {
    const hits = components.flatMap((component) => this.#components.get(component)?.find(name) ?? []);
    if (hits.length === 0) return undefined;
    const [target] = hits;
    if (hits.length > 1 || target === "ambiguous" || !target)
      return { reason: `several modules of the model could be ${name}`, components };
    return { target };
  }
}

/** PEFT's wrapper around a model, once per time that it was wrapped. */
export function withoutWrapper(path: string): string {
  const wrapper = "base_model.model.";
  let start = 0;
  while (path.startsWith(wrapper, start)) start += wrapper.length;
  return path.slice(start);
}
