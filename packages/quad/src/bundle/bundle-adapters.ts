import { join, resolve } from "node:path";
import { type AdapterRecord, adapterRecordText, type BundleManifest, type BundleQuality } from "@quad-lora/runtime";
import { writeFileAtomically } from "../files/atomic.ts";
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

/** Writes an adapter into a bundle, each file atomically. Other files stay as they are. */
export async function writeEncoded({ bundle }: FrozenBundle, { files, record }: EncodedFiles): Promise<AdapterRecord> {
  const folder = join(bundle, bundleFiles.adapters);
  for (const [file, bytes] of files) await writeFileAtomically(join(folder, file), bytes);
  // The record comes last: without it a new adapter is not there.
  await writeFileAtomically(join(folder, `${record.name}.json`), await adapterRecordText(record));
  return record;
}
