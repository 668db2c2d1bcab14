import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { loadModel } from "@quad-lora/onnx";
import type { AdapterRecord, BundleManifest, SlotsFile } from "@quad-lora/runtime";
import { type AimetVersion, readAimet, writeAimet } from "../encodings-files/index.ts";
import { componentFile } from "../model/graph-files.ts";
import { readSlots } from "../model/slots.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import { bundleFiles, readManifest, readRecords } from "./bundle-folder.ts";

/** What is inside a bundle. */
export interface BundleSummary {
  manifest: BundleManifest;
  profile: Profile;
  slots: SlotsFile;
  /** Nodes of the quantized graph. */
  nodes: number;
  adapters: AdapterRecord[];
  /** Bytes of every folder and of the files beside them, and of all. */
  sizes: Record<string, number>;
}

/**
 * Reads what a bundle says of itself. Sizes are the manifest's; hashes are compared when a bundle is opened.
 * @throws InputError if the folder is not a bundle
 */
export async function showBundle(bundle: string): Promise<BundleSummary> {
  const manifest = await readManifest(bundle);
  const adapters = await readRecords(bundle);
  const sizes: Record<string, number> = {};
  const add = (path: string, bytes: number) => {
    const part = path.includes("/") ? path.slice(0, path.indexOf("/")) : "other files";
    sizes[part] = (sizes[part] ?? 0) + bytes;
  };
  for (const [path, { bytes }] of Object.entries(manifest.files)) add(path, bytes);
  for (const { files } of adapters) {
    for (const [file, { bytes }] of Object.entries(files)) add(`${bundleFiles.adapters}/${file}`, bytes);
  }
  return {
    manifest,
    profile: await readProfile(join(bundle, bundleFiles.profile)),
    slots: await readSlots(bundle),
    nodes: loadModel(componentFile(bundle, manifest.component)).graph.nodes.size,
    adapters,
    sizes: { ...sizes, total: Object.values(sizes).reduce((sum, bytes) => sum + bytes, 0) },
  };
}

/** A bundle's encodings as an AIMET file of the wanted version. */
export async function bundleEncodings(bundle: string, version: AimetVersion): Promise<string> {
  const file = join(bundle, bundleFiles.encodings);
  const text = await readFile(file, "utf8");
  if (version === "2.0.0") return text;
  // Version 2.0.0 does not say what is a parameter: activations and adapter inputs are per tensor, weights per channel.
  const { activations } = readAimet(text, file);
  const isParameter = (name: string) => activations.get(name)?.axis !== undefined;
  return writeAimet(readAimet(text, file, { isParameter }), version);
}
