import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { readFactorFile, sourceKey } from "../factors/factor-file.ts";
import type { AdapterTensors } from "./encode-adapter.ts";

/** Full-precision factors that a bundle's adapter is made from. */
export interface AdapterSource extends AdapterTensors {
  /** Whether alignment may move them: factors that were trained on the grid stay where they are. */
  align: boolean;
}

/** The exposed folder's adapters, with those of the folders `distilled` in place of their namesakes. */
export async function loadAdapters(
  exposed: string,
  distilled: readonly string[] = [],
): Promise<Map<string, AdapterSource>> {
  const suffix = ".safetensors";
  const list = async (folder: string) =>
    (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(suffix)).sort();
  const own = join(exposed, "adapters");
  const trained = new Map<string, string>();
  for (const folder of distilled) for (const name of await list(folder)) trained.set(name, folder);
  const adapters = new Map<string, AdapterSource>();
  for (const name of [...new Set([...(await list(own)), ...trained.keys()])].sort()) {
    const { tensors, rank, metadata } = await readFactorFile(join(trained.get(name) ?? own, name));
    const source = metadata[sourceKey] ?? name;
    adapters.set(name.slice(0, -suffix.length), { tensors, rank, source, align: !trained.has(name) });
  }
  return adapters;
}
