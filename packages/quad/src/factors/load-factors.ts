import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import type { SlotsFile } from "@quad-lora/runtime";
import { hashFile } from "../files/hash.ts";
import { componentFile } from "../model/model-folder.ts";
import type { Profile } from "../records/profile.ts";
import { type AdapterFactors, factorsOf } from "./encode-factors.ts";
import { readFactorFile } from "./factor-file.ts";

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
    const { rank, tensors } = await readFactorFile(path);
    read.push({ name, rank, tensors });
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

/** @throws InputError if the exposed folder's graph, weights included, is not the one that the profile was made from */
export async function refuseOtherGraph(
  profile: Profile,
  exposed: string,
  component: string,
  file: string,
  fix = "Make the profile from this exposed folder.",
): Promise<void> {
  const identity = await graphIdentity(exposed, component);
  if (profile.component === component && profile.graph === identity) return;
  throw new InputError({
    what: "the profile belongs to another graph",
    file,
    where: "graph",
    expected: `${identity}, of ${exposed}`,
    got: profile.graph,
    fix,
  });
}
