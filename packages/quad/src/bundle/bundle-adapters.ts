import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { type AdapterRecord, adapterRecordText, type BundleManifest, type BundleQuality } from "@quad-lora/runtime";
import { writeFileAtomically } from "../files/atomic.ts";
import { withFolderLock } from "../files/folder-lock.ts";
import { replaceFolder, takeFile } from "../files/replace-folder.ts";
import { openFolder } from "../model/open-folder.ts";
import { readSlots } from "../model/slots.ts";
import { readProfile } from "../records/profile.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { StageOptions } from "../work/progress.ts";
import { bundleFiles, readManifest } from "./bundle-folder.ts";
import type { EncodedFiles, EncodingFrame } from "./encode-adapter.ts";
import { measureQuality } from "./quality.ts";
import { verifyFile } from "./verify.ts";

/** A bundle's frozen parts: what adapters that come later are encoded against. */
export interface FrozenBundle extends EncodingFrame {
  /** Absolute path. */
  bundle: string;
  manifest: BundleManifest;
}

/** @throws InputError if the folder is not a bundle, or its profile or slots are not those of its manifest */
export async function openFrozen(path: string): Promise<FrozenBundle> {
  const bundle = resolve(path);
  const manifest = await readManifest(bundle);
  for (const file of [bundleFiles.profile, bundleFiles.slots]) await verifyFile(bundle, file, manifest.files[file]);
  const profile = await readProfile(join(bundle, bundleFiles.profile));
  const slots = await readSlots(bundle);
  return { bundle, manifest, profile, slots, identity: { graph: manifest.graph, profile: manifest.profile } };
}

/** Runs the bundle with an adapter that is not in it yet, on what full precision saw and said. */
export async function measureEncoded(
  { bundle, manifest, profile }: FrozenBundle,
  name: string,
  { files }: EncodedFiles,
  trajectory: Trajectory,
  { signal }: Pick<StageOptions, "signal"> = {},
): Promise<BundleQuality> {
  // A fixed number of threads: sums of floats, and so the figures, depend on it.
  const pipeline = await openFolder(bundle, { threads: 2 });
  try {
    pipeline.addAdapter(name, files.get(`${name}.safetensors`)!);
    await pipeline.use(name);
    return await measureQuality(pipeline, manifest.component, trajectory, {
      batch: profile.shape.batch,
      calls: 32,
      signal,
    });
  } finally {
    await pipeline.dispose();
  }
}

/**
 * Writes adapters into a bundle, all of them at one moment: a kill leaves those that were there before, or the new ones. Other
 * adapters and files stay as they are.
 * @param check - called when nobody else can write any more
 * @returns the records as they are in the bundle, each with its hash
 * @throws InputError if the bundle was replaced by another one since it was opened
 */
export async function writeEncoded(
  { bundle, identity }: FrozenBundle,
  encoded: readonly EncodedFiles[],
  check?: () => void,
): Promise<AdapterRecord[]> {
  const folder = join(bundle, bundleFiles.adapters);
  const written = new Map<string, Uint8Array | string>();
  const records: AdapterRecord[] = [];
  for (const { files, record } of encoded) {
    for (const [file, bytes] of files) written.set(file, bytes);
    const text = await adapterRecordText(record);
    written.set(`${record.name}.json`, text);
    records.push(JSON.parse(text));
  }
  // What lies beside a record, such as its signature, is that record's.
  const isOld = (name: string) =>
    written.has(name) || encoded.some(({ record }) => name.startsWith(`${record.name}.json.`));
  await withFolderLock(bundle, async () => {
    const { graph, profile } = await readManifest(bundle);
    if (graph !== identity.graph || profile !== identity.profile) {
      throw new InputError({
        what: "was replaced by another bundle meanwhile",
        file: bundle,
        fix: "Run the command again.",
      });
    }
    check?.();
    await replaceFolder(folder, async (temporary) => {
      for (const name of await readdir(folder).catch(() => [])) {
        if (!isOld(name) && !name.startsWith(".")) await takeFile(join(folder, name), join(temporary, name));
      }
      for (const [name, contents] of written) await writeFileAtomically(join(temporary, name), contents);
    });
  });
  return records;
}
