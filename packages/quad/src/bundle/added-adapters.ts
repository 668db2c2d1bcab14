import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { BundleManifest } from "@quad-lora/runtime";
import { takeFile } from "../files/replace-folder.ts";
import { syncFolder } from "../files/sync.ts";
import { bundleFiles, readManifest, readRecords } from "./bundle-folder.ts";

/** Where adapters go that were added to a bundle and do not fit the one that takes its place: a folder beside it. */
export function setAsideFolder(bundle: string): string {
  return join(dirname(bundle), `${basename(bundle)}.set-aside`);
}

/**
 * Adapters that were added to the bundle at `out` go on into the folder that takes its place if graph and profile are the same;
 * else they are set aside, where their records still say what they were made from, and how they are asked for.
 * @returns the names of those that were set aside
 */
export async function keepAddedAdapters(out: string, target: string, manifest: BundleManifest): Promise<string[]> {
  if (!existsSync(out)) return [];
  const current = new Set((await readRecords(target)).map(({ name }) => name));
  const before = await readManifest(out).catch(() => undefined);
  const added = (await readRecords(out).catch(() => [])).filter(({ name }) => !current.has(name));
  if (added.length === 0) return [];
  const isSame = before?.graph === manifest.graph && before.profile === manifest.profile;
  const identity = before ? `${before.graph.slice(0, 8)}-${before.profile.slice(0, 8)}` : "unknown";
  const folder = isSame ? target : join(setAsideFolder(out), identity);
  for (const { name, files } of added) await takeAdapter(out, folder, name, Object.keys(files));
  await syncFolder(join(folder, bundleFiles.adapters));
  return isSame ? [] : added.map(({ name }) => name);
}

async function takeAdapter(out: string, folder: string, name: string, files: readonly string[]): Promise<void> {
  const source = join(out, bundleFiles.adapters);
  // The record, and what lies beside it, such as its signature.
  const isOwn = (file: string) => files.includes(file) || file === `${name}.json` || file.startsWith(`${name}.json.`);
  for (const file of (await readdir(source)).filter(isOwn)) {
    const to = join(folder, bundleFiles.adapters, file);
    if (!existsSync(to)) await takeFile(join(source, file), to);
  }
}
