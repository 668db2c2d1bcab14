import type { AdaptableModule, AdapterComponent } from "../types.ts";
import type { AdapterTarget } from "./target.ts";

/** A name that files give to a module or to a part of one, and what it stands for. */
export type Alias = readonly [name: string, target: AdapterTarget];

/** One component's modules, and the names that are known for them so far. */
export interface KnownNames {
  readonly component: AdapterComponent;
  /** By their own names. */
  readonly modules: ReadonlyMap<string, AdaptableModule>;
  /** The model's own names and those of the conventions before this one. */
  readonly targets: ReadonlyMap<string, AdapterTarget>;
}

/**
 * How files of one origin name a model's modules. Names are dotted, without prefix: prefixes and kohya's spelling with
 * underscores are the same for all. Every name is derived from the model's own, so that a convention knows no sizes or
 * counts of a particular model.
 */
export interface NamingConvention {
  readonly name: string;
  aliases(known: KnownNames): Iterable<Alias>;
}

/** Whether a component encodes text. */
export function isTextEncoder(component: AdapterComponent): boolean {
  return component.startsWith("text_encoder");
}

/**
 * A convention that renames single layers within numbered blocks and outside of them.
 * @param blocks - `own` is what the model calls the blocks, `other` what files do, both without number; `layers` maps the
 * names behind the number.
 * @param single - Names of layers outside of all blocks, in the model and in files.
 */
export function* renamedLayers(
  { targets }: KnownNames,
  blocks: readonly { own: string; other: string; layers: Readonly<Record<string, string>> }[],
  single: Readonly<Record<string, string>> = {},
): Generator<Alias> {
  for (const [name, target] of targets) {
    if (Object.hasOwn(single, name)) yield [single[name], target];
    for (const { own, other, layers } of blocks) {
      if (!name.startsWith(`${own}.`)) continue;
      const dot = name.indexOf(".", own.length + 1);
      const rest = name.slice(dot + 1);
      if (dot > 0 && Object.hasOwn(layers, rest))
        yield [`${other}.${name.slice(own.length + 1, dot)}.${layers[rest]}`, target];
    }
  }
}
