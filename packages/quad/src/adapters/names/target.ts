import type { AdaptableModule } from "../types.ts";

/** What a file's module stands for in the model. */
export type AdapterTarget =
  | { readonly kind: "whole"; readonly module: AdaptableModule }
  /** Fused in the file, separate in the model: the modules take the rows of `up` one after the other. */
  | { readonly kind: "split"; readonly modules: readonly AdaptableModule[] }
  /** The halves of the module's outputs stand in the file in the other order: `[shift, scale]` for `[scale, shift]`. */
  | { readonly kind: "swapped"; readonly module: AdaptableModule }
  /**
   * Separate in the file, fused in the model: part `index` of `count` of the module's outputs. `sizes` are the outputs of
   * every part where they are known; otherwise they are equal, or those of the file where it has every part.
   */
  | {
      readonly kind: "slice";
      readonly module: AdaptableModule;
      readonly index: number;
      readonly count: number;
      readonly sizes?: readonly number[];
    };

/** The target of a name that stands for one module as it is. */
export const wholeTarget = (module: AdaptableModule): AdapterTarget => ({ kind: "whole", module });

/** The modules that a target changes, in the order of the file's rows. */
export function targetModules(target: AdapterTarget): readonly AdaptableModule[] {
  return target.kind === "split" ? target.modules : [target.module];
}
