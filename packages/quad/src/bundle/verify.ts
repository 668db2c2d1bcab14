import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { type FileRecord, openBundle } from "@quad-lora/runtime";
import { folderFiles } from "../files/folder-files.ts";
import type { StageOptions } from "../work/progress.ts";
import { bundleFiles, readManifest, readRecords } from "./bundle-folder.ts";

/**
 * Checks everything that running a bundle relies on: opens it as the runtime does (records, names, files beside graphs, and
 * signatures where keys are given), and compares every file, also those that opening does not read.
 * @param trustedKeys - public ed25519 keys, PEM or base64: manifest and records must be signed with one of them
 * @throws InputError naming the first file that differs
 */
export async function verifyBundle(
  bundle: string,
  { signal, onProgress, trustedKeys }: StageOptions & { trustedKeys?: readonly string[] } = {},
): Promise<void> {
  await openBundle(folderFiles(bundle), { trustedKeys });
  const files: [string, FileRecord | undefined][] = Object.entries((await readManifest(bundle)).files);
  for (const record of await readRecords(bundle)) {
    const { [`${record.name}.safetensors`]: codes } = record.files;
    files.push([`${bundleFiles.adapters}/${record.name}.safetensors`, codes]);
    for (const [name, file] of Object.entries(record.files)) files.push([`${bundleFiles.adapters}/${name}`, file]);
  }
  for (const [index, [path, expected]] of files.entries()) {
    signal?.throwIfAborted();
    await verifyFile(bundle, path, expected);
    onProgress?.("verifying", index + 1, files.length);
  }
}

/**
 * Compares one file with its entry in a manifest.
 * @throws InputError if there is none, or the file is another
 */
export async function verifyFile(bundle: string, path: string, expected: FileRecord | undefined): Promise<void> {
  const files = folderFiles(bundle);
  const fix = "Copy or build the bundle again.";
  const file = join(bundle, path);
  if (!expected) throw new InputError({ what: "is not in the bundle's manifest", file, fix });
  const bytes = await files.size!(path);
  if (bytes === undefined) throw new InputError({ what: "is missing", file, expected: `${expected.bytes} bytes`, fix });
  const what = "is not the file that the manifest describes";
  if (bytes !== expected.bytes) {
    throw new InputError({ what, file, expected: `${expected.bytes} bytes`, got: `${bytes} bytes`, fix });
  }
  const sha256 = await files.digest!(path);
  if (sha256 === expected.sha256) return;
  throw new InputError({ what, file, expected: `SHA-256 ${expected.sha256}`, got: `SHA-256 ${sha256}`, fix });
}
