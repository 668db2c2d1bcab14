import { existsSync } from "node:fs";
import { join } from "node:path";
import type { SlotsFile } from "@quad-lora/runtime";
import { type AdapterFactors, factorsOf } from "./encode-factors.ts";
import { type FactorFile, readFactorFile } from "./factor-file.ts";

/**
 * A component's factors of the named adapters in an exposed folder, padded to one rank: the largest among them. Names without
 * a file (the base) are left out.
 * @param leastRank - rank to pad to where all are smaller
 * @returns also the files as they are
 */
export async function loadFactors(
  exposed: string,
  { slots }: Pick<SlotsFile["components"][string], "slots">,
  names: readonly string[],
  folder = join(exposed, "adapters"),
  leastRank = 1,
): Promise<{ factors: Map<string, AdapterFactors>; rank: number; files: Map<string, FactorFile> }> {
  const files = new Map<string, FactorFile>();
  for (const name of names) {
    const path = join(folder, `${name}.safetensors`);
    if (existsSync(path)) files.set(name, await readFactorFile(path));
  }
  const rank = Math.max(leastRank, ...[...files.values()].map((file) => file.rank));
  const factors = new Map(
    [...files].map(([name, file]) => [name, factorsOf(file.tensors, slots, file.rank, rank)] as const),
  );
  return { factors, rank, files };
}
