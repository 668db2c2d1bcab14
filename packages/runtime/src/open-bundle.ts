import { InputError } from "@quad-lora/base";
import type { FolderFiles } from "./files.ts";
import {
  type AdapterRecord,
  type BundleManifest,
  type FileRecord,
  parseAdapterRecord,
  parseManifest,
} from "./manifest.ts";
import { graphHash, sha256 } from "./sha256.ts";
import { verifySignature } from "./signature.ts";
import type { Task } from "./tasks.ts";

/** An opened bundle: its manifest, and its files as they are to be read. */
export interface OpenedBundle {
  manifest: BundleManifest;
  /** Gives only what the manifest or an adapter's record names, and refuses what differs from it. */
  files: FolderFiles;
  /** Tasks of adapters that were added later. */
  tasks: ReadonlyMap<string, Task>;
}

/** How far a bundle is trusted. */
export interface TrustOptions {
  /**
   * Compare a bundle's files with its manifest, and refuse integer slots without one; true by default. Adapters of other
   * bundles, and records that were changed, are refused in any case.
   */
  verify?: boolean;
  /** SHA-256 of the one `manifest.json` that is accepted, lower-case hexadecimal. A folder without a manifest is refused. */
  manifest?: string;
  /**
   * Public ed25519 keys, of which one must have signed the manifest, and one each record of an adapter: PEM, or the 32 bytes
   * in base64. A folder without a signed manifest is refused.
   */
  trustedKeys?: readonly string[];
}

const manifestFile = "manifest.json";

/**
 * Opens a folder's manifest, where it has one. With `verify`, files that ONNX Runtime opens by path are compared with the
 * manifest here, sizes first; all others when they are read.
 *
 * @throws InputError when the manifest is missing though it is asked for, is broken, contradicts itself, is not the pinned or
 *   a signed one, or when a file differs from it, is missing, or is not listed
 */
export async function openBundle(files: FolderFiles, trust: TrustOptions = {}): Promise<OpenedBundle | undefined> {
  const { verify = true } = trust;
  const file = files.describe(manifestFile);
  if (!(await files.exists(manifestFile))) {
    if (trust.manifest === undefined && trust.trustedKeys === undefined) return undefined;
    throw new InputError({ what: "is missing", file, expected: "a bundle", fix: "Give the folder of a whole bundle." });
  }
  const bytes = await files.read(manifestFile);
  if (trust.manifest !== undefined)
    refuseHash(file, trust.manifest, await sha256(bytes), "is not the manifest that is asked for");
  if (trust.trustedKeys) await verifySignature(files, manifestFile, bytes, trust.trustedKeys);
  const manifest = parseManifest(new TextDecoder().decode(bytes), file);
  if (verify) {
    await checkIdentity(manifest, file);
    await verifyLocal(files, manifest);
  }
  const records = new AdapterRecords(files, manifest, trust.trustedKeys);
  const tasks = new Map<string, Task>();
  for (const name of await files.list("adapters")) {
    if (!name.endsWith(".json")) continue;
    const record = await records.read(name.slice(0, -".json".length));
    if (record.task) tasks.set(record.name, record.task);
  }
  return { manifest, files: verify ? verifiedFiles(files, manifest, records) : files, tasks };
}

/** The records of a bundle's adapters, each read and checked once. */
class AdapterRecords {
  readonly #files: FolderFiles;
  readonly #manifest: BundleManifest;
  readonly #trustedKeys: readonly string[] | undefined;
  readonly #reading = new Map<string, Promise<AdapterRecord>>();

  constructor(files: FolderFiles, manifest: BundleManifest, trustedKeys: readonly string[] | undefined) {
    this.#files = files;
    this.#manifest = manifest;
    this.#trustedKeys = trustedKeys;
  }

  /** @throws InputError when there is none, it is broken or changed, or it belongs to another graph or profile */
  read(name: string): Promise<AdapterRecord> {
    let reading = this.#reading.get(name);
    if (!reading) {
      reading = this.#readNow(name);
      this.#reading.set(name, reading);
      // A failed download may be tried again.
      reading.catch(() => this.#reading.delete(name));
    }
    return reading;
  }

  async #readNow(name: string): Promise<AdapterRecord> {
    const path = `adapters/${name}.json`;
    const file = this.#files.describe(path);
    if (!(await this.#files.exists(path))) {
      throw new InputError({
        what: "the adapter has no record",
        file,
        fix: "Encode it for this bundle: run quad add.",
      });
    }
    const bytes = await this.#files.read(path);
    if (this.#trustedKeys) await verifySignature(this.#files, path, bytes, this.#trustedKeys);
    const record = await parseAdapterRecord(new TextDecoder().decode(bytes), file, name);
    refuseOtherBundle(record, this.#manifest, file);
    return record;
  }
}

function refuseOtherBundle(record: AdapterRecord, manifest: BundleManifest, file: string): void {
  for (const [key, what] of [
    ["graph", "the adapter was made for another graph"],
    ["profile", "the adapter was encoded with another quantization profile"],
  ] as const) {
    if (record[key] === manifest[key]) continue;
    throw new InputError({
      what,
      file,
      where: key,
      expected: manifest[key],
      got: record[key],
      fix: "Encode the original LoRA for this bundle: run quad add.",
    });
  }
}

/** The manifest's graph and profile must be those of the files it lists. */
async function checkIdentity({ component, graph, profile, files }: BundleManifest, file: string): Promise<void> {
  const model = `${component}/model.onnx`;
  const hashes = [model, `${model}_data`].map((path) => files[path]?.sha256).filter((hash) => hash !== undefined);
  const found = { graph: await graphHash(hashes), profile: files["profile.json"]?.sha256 ?? "no profile.json" };
  for (const [where, expected, got] of [
    ["graph", found.graph, graph],
    ["profile", found.profile, profile],
  ] as const) {
    if (expected !== got) throw new InputError({ what: "contradicts its list of files", file, where, expected, got });
  }
}

/**
 * Compares all files that have a local path with the manifest, as streams: the same bytes are mapped afterwards. Beside a
 * graph no other file may lie, for ONNX Runtime would open it as weights where the graph says so.
 */
async function verifyLocal(files: FolderFiles, manifest: BundleManifest): Promise<void> {
  if (!files.digest) return;
  const entries = Object.entries(manifest.files);
  if (files.size) {
    for (const [path, { bytes }] of entries) refuseSize(files.describe(path), bytes, await files.size(path));
  }
  for (const [path, expected] of entries) {
    refuseHash(files.describe(path), expected.sha256, await files.digest(path));
  }
  const graphFolders = entries.filter(([path]) => path.endsWith("/model.onnx")).map(([path]) => path.slice(0, -11));
  for (const folder of graphFolders) {
    for (const name of await files.list(folder)) {
      const path = `${folder}/${name}`;
      if (!Object.hasOwn(manifest.files, path)) throw unlisted(files.describe(path));
    }
  }
}

function unlisted(file: string): InputError {
  return new InputError({
    what: "is not in the bundle's manifest",
    file,
    fix: "Remove the file, or build the bundle again.",
  });
}

/** The folder as the manifest knows it: other files do not exist, and what is read is compared first. */
function verifiedFiles(files: FolderFiles, manifest: BundleManifest, records: AdapterRecords): FolderFiles {
  const expectedOf = async (path: string): Promise<FileRecord | undefined> => {
    const [, name, extension] = /^adapters\/(.+)\.(\w+)$/.exec(path) ?? [];
    if (name === undefined) return Object.hasOwn(manifest.files, path) ? manifest.files[path] : undefined;
    const { files: own } = await records.read(name);
    return Object.hasOwn(own, `${name}.${extension}`) ? own[`${name}.${extension}`] : undefined;
  };
  const isListed = (path: string) => Object.hasOwn(manifest.files, path);
  const { digest, localPath } = files;
  return {
    ...files,
    async exists(path) {
      if (!isListed(path)) return path.startsWith("adapters/") && (await files.exists(path));
      if (await files.exists(path)) return true;
      throw new InputError({ what: "is missing, though the manifest lists it", file: files.describe(path), fix });
    },
    async read(path) {
      const expected = await expectedOf(path);
      if (!expected) throw unlisted(files.describe(path));
      const bytes = await files.read(path);
      // What has a local path was compared when the bundle was opened.
      if (!(digest && isListed(path))) {
        refuseSize(files.describe(path), expected.bytes, bytes.byteLength);
        refuseHash(files.describe(path), expected.sha256, await sha256(bytes));
      }
      return bytes;
    },
    // Without a way to hash a file in place, its bytes have to come through `read`.
    localPath: (path) => (digest ? localPath?.(path) : undefined),
  };
}

const fix = "Copy or build the bundle again; verify: false opens it nevertheless.";

function refuseSize(file: string, expected: number, got: number | undefined): void {
  if (got === expected) return;
  throw new InputError({
    what: got === undefined ? "is missing" : "is not the file that the manifest describes",
    file,
    expected: `${expected} bytes`,
    ...(got === undefined ? {} : { got: `${got} bytes` }),
    fix,
  });
}

function refuseHash(
  file: string,
  expected: string,
  got: string,
  what = "is not the file that the manifest describes",
): void {
  if (got === expected) return;
  throw new InputError({
    what,
    file,
    expected: `SHA-256 ${expected}`,
    got: `SHA-256 ${got}`,
    fix,
  });
}
