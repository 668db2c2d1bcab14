import type { SafetensorsInput } from "@quad-lora/base";
import type { SlotsFile } from "@quad-lora/runtime";
import { factorDims, padRank, slotInputs } from "./slot-layout.ts";

/**
 * An adapter's factors for components other than the denoiser, such as text encoders: they stay in full precision. All
 * tensors of an adapter have one rank, so these take that of the denoiser's.
 * @param denoiser - component whose factors are left out
 * @param adapter - factors by graph input, and their rank
 * @param rank - of the result, at least the adapter's: the factors are filled up with zeros
 */
export function otherFactors(
  { components }: Pick<SlotsFile, "components">,
  denoiser: string,
  adapter: { rank: number; tensors: ReadonlyMap<string, Float32Array> },
  rank: number,
): SafetensorsInput[] {
  return Object.entries(components)
    .filter(([component]) => component !== denoiser)
    .flatMap(([, { slots }]) => [...slotInputs(slots)])
    .flatMap(([name, shape]): SafetensorsInput[] => {
      const values = adapter.tensors.get(name);
      if (!values) return [];
      return [{ name, dtype: "F32", shape: factorDims(shape, rank), data: padRank(values, shape, adapter.rank, rank) }];
    });
}
