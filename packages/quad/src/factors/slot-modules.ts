import type { SlotsFile } from "@quad-lora/runtime";
import type { AdaptableModule, AdapterComponent } from "../adapters/types.ts";

/** The slots of a folder as modules that an adapter's keys can be looked up among: no graph is needed. */
export function slotModules({ components }: SlotsFile): AdaptableModule[] {
  return Object.entries(components).flatMap(([component, { slots }]) =>
    slots.map(({ name, kind, inFeatures, outFeatures, kernel, shapeA }): AdaptableModule => {
      const isConv = kind === "conv";
      return {
        component: component as AdapterComponent,
        name,
        kind: isConv ? "conv" : "linear",
        inFeatures,
        outFeatures,
        ...(kernel ? { kernel } : {}),
        // A convolution's A is [rank, in / groups, height, width].
        ...(isConv ? { groups: inFeatures / Number(shapeA[1]) } : {}),
      };
    }),
  );
}
