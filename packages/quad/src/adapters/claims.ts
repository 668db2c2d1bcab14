import type { Mismatch } from "./methods/method.ts";
import { type AdapterTarget, targetModules } from "./names/target.ts";

/** Which layers of the model already have a change from the adapter: a second one would replace the first. */
export class Claims {
  readonly #owners = new Map<string, string>();

  claim(target: AdapterTarget, path: string): void {
    for (const name of claimsOf(target)) this.#owners.set(name, path);
  }

  /** A mismatch where something else adapts one of the target's modules. */
  conflict(target: AdapterTarget): Mismatch | undefined {
    const own = claimsOf(target);
    const conflicting =
      target.kind === "slice"
        ? [`${target.module.component}/${target.module.name}`, own[1]]
        : [...own, ...own.map((name) => `${name} in part`)];
    const other = conflicting.map((name) => this.#owners.get(name)).find((path) => path !== undefined);
    return other === undefined ? undefined : { expected: "one adapter for a module", got: `also ${other}` };
  }
}

/** What a target takes up: a slice leaves its module's other slices free, but no longer the whole. */
function claimsOf(target: AdapterTarget): string[] {
  if (target.kind === "slice") {
    const { component, name } = target.module;
    return [`${component}/${name} in part`, `${component}/${name} part ${target.index}`];
  }
  return targetModules(target).map(({ component, name }) => `${component}/${name}`);
}
