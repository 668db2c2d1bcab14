import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import {
  type AdapterRecord,
  type BundleManifest,
  type FileRecord,
  parseAdapterRecord,
  parseManifest,
} from "@quad-lora/runtime";
import { hashFile } from "../files/hash.ts";
import { readText } from "../files/json.ts";
import { refuseForeignFolder } from "../files/overwrite.ts";
import { restoreFolder } from "../files/replace-folder.ts";

/** Files of a bundle by what they are for. */
export const bundleFiles = {
  manifest: "manifest.json",
  profile: "profile.json",
  slots: "slots.json",
  tasks: "tasks.json",
  encodings: "encodings.json",
  adapters: "adapters",
} as const;

/** @throws InputError if the folder is not a bundle of this version */
export async function readManifest(bundle: string): Promise<BundleManifest> {
  await restoreFolder(bundle);
  const file = join(bundle, bundleFiles.manifest);
  const text = await readText(file, "a bundle written by quad build or quad compile");
  return parseManifest(text, file);
}

/**
 * Overwriting is for bundles, and for what their manifest lists.
 * @throws InputError if `out` is something else, or holds something besides
 */
export async function refuseForeignBundle(out: string): Promise<void> {
  const manifest = await readManifest(out).catch(() => undefined);
  const own = new Set(Object.keys(manifest?.files ?? {}).map((path) => path.split("/")[0]));
  await refuseForeignFolder(out, {
    mark: bundleFiles.manifest,
    otherwise: "exists and is not a bundle",
    isOwn: (entry) =>
      !manifest || own.has(entry) || entry === bundleFiles.adapters || entry.startsWith(bundleFiles.manifest),
  });
}

/** The records of a bundle's adapters, sorted by name. */
export async function readRecords(bundle: string): Promise<AdapterRecord[]> {
  const folder = join(bundle, bundleFiles.adapters);
  await restoreFolder(folder);
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(".json")).sort();
  return Promise.all(
    names.map(async (name) => {
      const file = join(folder, name);
      return parseAdapterRecord(await readText(file), file, name.slice(0, -".json".length));
    }),
  );
}

/** Hashes and sizes of all files below a folder but adapters and the manifest, by path with `/`, sorted. */
export async function recordFiles(folder: string, signal?: AbortSignal): Promise<Record<string, FileRecord>> {
  const records: Record<string, FileRecord> = {};
  for (const path of await listFiles(folder)) {
    if (path === bundleFiles.manifest || path.startsWith(`${bundleFiles.adapters}/`)) continue;
    signal?.throwIfAborted();
    const file = join(folder, path);
    records[path] = { sha256: await hashFile(file), bytes: (await stat(file)).size };
  }
  return records;
}

async function listFiles(folder: string, prefix = ""): Promise<string[]> {
  const files: string[] = [];
  const entries = await readdir(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = `${prefix}${entry.name}`;
    if (entry.isDirectory()) files.push(...(await listFiles(join(folder, entry.name), `${path}/`)));
    else files.push(path);
  }
  return files;
}
