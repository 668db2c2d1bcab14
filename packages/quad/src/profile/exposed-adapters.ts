import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { SlotsFile } from "@quad/runtime";
import { hashFile } from "../files/hash.ts";
import { openSafetensors } from "../files/safetensors.ts";
import { componentFile } from "../model/model-folder.ts";
import { type AdapterFactors, factorsOf } from "./adapter-encodings.ts";

/**
 * The factors of the named adapters in an exposed folder, padded to one rank: the largest among them, or the slots' fixed
 * one. Names without a file (the base) are left out.
 * @param leastRank - rank to pad to where all are smaller
 */
export async function loadFactors(
  exposed: string,
  slots: SlotsFile["components"][string],
  names: readonly string[],
  folder = join(exposed, "adapters"),
  leastRank = 1,
): Promise<{ factors: Map<string, AdapterFactors>; rank: number }> {
  const read: { name: string; rank: number; tensors: Map<string, Float32Array> }[] = [];
  for (const name of names) {
    const path = join(folder, `${name}.safetensors`);
    if (!existsSync(path)) continue;
    const file = await openSafetensors(path);
    try {
      const tensors = new Map<string, Float32Array>();
      for (const key of file.entries.keys()) tensors.set(key, await file.readFloat32(key));
      read.push({ name, rank: Number(file.metadata["quad.rank"]), tensors });
    } finally {
      await file.close();
    }
  }
  const rank = Math.max(leastRank, ...read.map((adapter) => adapter.rank));
  const factors = new Map(
    read.map((adapter) => [adapter.name, factorsOf(adapter.tensors, slots.slots, adapter.rank, rank)]),
  );
  return { factors, rank };
}

/** What stands for a graph with its weights: SHA-256 over the hashes of the model file and its data file. */
export async function graphIdentity(folder: string, component: string): Promise<string> {
  const path = componentFile(folder, component);
  const hash = createHash("sha256").update(await hashFile(path));
  if (existsSync(`${path}_data`)) hash.update(await hashFile(`${path}_data`));
  return hash.digest("hex");
}
