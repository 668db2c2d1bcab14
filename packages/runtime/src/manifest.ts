import { InputError } from "@quad-lora/base";
import { z } from "zod";
import type { BundleIdentity } from "./adapter-file.ts";
import { type Task, taskSchema } from "./configs.ts";
import { type FolderFiles, readJson } from "./files.ts";

const hashSchema = z.string().regex(/^[0-9a-f]{64}$/, "expected a SHA-256 hash in lower-case hexadecimal");

const fileSchema = z.strictObject({
  /** SHA-256 of the file's bytes, lower-case hexadecimal. */
  sha256: hashSchema,
  bytes: z.int().nonnegative(),
});
/** What a manifest says of a file. */
export type FileRecord = z.infer<typeof fileSchema>;

const qualitySchema = z.strictObject({
  /** Quantization sensitivity score against full precision, nats: 0 = the same, ln 2 = nothing in common. */
  qss: z.number(),
  /** Signal to quantization noise of the denoiser's outputs against full precision, dB; null where there is no noise. */
  sqnr: z.number().nullable(),
  /** Denoiser calls that both are taken over. */
  calls: z.int().positive(),
});
/** How near the quantized graph comes to full precision. */
export type BundleQuality = z.infer<typeof qualitySchema>;

/** The compiler's targets have names of its own; what the runtime has to know of one is said beside the name. */
const targetSchema = z.strictObject({
  kind: z.string().min(1),
  /** The rank that all adapters are given with, where the graph's is fixed. */
  rank: z.int().positive().optional(),
  /** Operators of the graph beyond the ONNX standard, `DOMAIN.OPERATOR`: the ONNX Runtime that opens it has to have them. */
  operators: z.array(z.string()).optional(),
});

/** `manifest.json`: what a bundle consists of, but for its adapters, which have records of their own. */
export const manifestSchema = z.strictObject({
  format: z.literal("quad-bundle"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  target: targetSchema,
  /** Folder of the quantized graph. */
  component: z.string(),
  /** Stands for the quantized graph with its weights: SHA-256 of the hexadecimal hashes of its files, in order. */
  graph: hashSchema,
  /** SHA-256 of `profile.json`. */
  profile: hashSchema,
  /** The base task's quality, where it was measured. */
  base: qualitySchema.optional(),
  /** Every file outside `adapters/`, by its path in the bundle. */
  files: z.record(z.string(), fileSchema),
});
/** Content of a bundle's `manifest.json`. */
export type BundleManifest = z.infer<typeof manifestSchema>;

const fitSchema = z.strictObject({
  /** Measured by running the bundle beside full precision; left out where that was not at hand. */
  measured: qualitySchema.optional(),
  /** Signal to noise of all the factors' products `A B` on the grid, dB; null where there is no noise. */
  productSqnr: z.number().nullable(),
  /** Relative error of the products, Frobenius norm, root mean square over slots. */
  alignmentError: z.number().nonnegative(),
  /** The same before alignment. */
  errorBeforeAlignment: z.number().nonnegative(),
  /** Share of the factors' values that the shared grid clips, 0 to 1. */
  clipped: z.number().min(0).max(1),
});
/** How well an adapter fits a bundle's frozen scales. */
export type AdapterFit = z.infer<typeof fitSchema>;

/** `adapters/NAME.json`: one adapter of a bundle. */
export const adapterRecordSchema = z.strictObject({
  format: z.literal("quad-bundle-adapter"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  name: z.string(),
  /** Where it came from: a file name. */
  source: z.string(),
  /** The bundle it was encoded for, as the manifest has it. */
  graph: hashSchema,
  profile: hashSchema,
  rank: z.int().positive(),
  /** Slots it uses, of all components. */
  slots: z.int().positive(),
  /** Keys of the source that this bundle has no slot for. */
  withoutSlot: z.array(z.string()).default([]),
  fit: fitSchema,
  /** Defaults of the task of this name, where `tasks.json` does not have it. */
  task: taskSchema.optional(),
  /** Its files in `adapters/`. */
  files: z.record(z.string(), fileSchema),
});
/** What a bundle records of one of its adapters. */
export type AdapterRecord = z.infer<typeof adapterRecordSchema>;

/** An opened bundle: its manifest, and its files as they are to be read. */
export interface OpenedBundle {
  manifest: BundleManifest;
  /** Gives only what the manifest or an adapter's record names, and refuses what differs from it. */
  files: FolderFiles;
  /** Tasks of adapters that were added later. */
  tasks: ReadonlyMap<string, Task>;
}

/**
 * Opens a folder's manifest, where it has one. With `verify`, files that ONNX Runtime opens by path are compared with the
 * manifest here, sizes first; all others when they are read.
 *
 * @throws InputError when the manifest is broken, contradicts itself, or a file differs from it
 */
export async function openBundle(files: FolderFiles, verify: boolean): Promise<OpenedBundle | undefined> {
  if (!(await files.exists("manifest.json"))) return undefined;
  const manifest = await readJson(files, "manifest.json", manifestSchema);
  const verified = verify ? verifiedFiles(files, manifest) : files;
  if (verify) {
    await checkIdentity(manifest, files.describe("manifest.json"));
    await verifyLocal(files, manifest);
  }
  const tasks = new Map<string, Task>();
  for (const name of await files.list("adapters")) {
    if (!name.endsWith(".json")) continue;
    const record = await readJson(files, `adapters/${name}`, adapterRecordSchema);
    if (record.task) tasks.set(record.name, record.task);
  }
  return { manifest, files: verified, tasks };
}

/** What an adapter's codes are tied to. */
export function identityOf({ graph, profile }: BundleManifest): BundleIdentity {
  return { graph, profile };
}

/** The hash that stands for a graph: of its files' hashes, the model file's first. */
export async function graphHash(fileHashes: readonly string[]): Promise<string> {
  return sha256(new TextEncoder().encode(fileHashes.join("")));
}

/**
 * SHA-256 in lower-case hexadecimal.
 *
 * @throws InputError where the engine has no Web Cryptography: browsers offer it to secure pages only
 */
export async function sha256(bytes: Uint8Array): Promise<string> {
  const { subtle } = globalThis.crypto ?? {};
  if (!subtle) {
    throw new InputError({
      what: "files cannot be verified on this page",
      expected: "a secure context (https or localhost), which Web Cryptography needs",
      fix: "Serve the page over https, or open the bundle with verify: false.",
    });
  }
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
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

/** Compares all files that have a local path with the manifest, as streams: the same bytes are mapped afterwards. */
async function verifyLocal(files: FolderFiles, manifest: BundleManifest): Promise<void> {
  if (!files.digest) return;
  const entries = Object.entries(manifest.files);
  if (files.size) {
    for (const [path, { bytes }] of entries) refuseSize(files.describe(path), bytes, await files.size(path));
  }
  for (const [path, expected] of entries) {
    refuseHash(files.describe(path), expected.sha256, await files.digest(path));
  }
}

/** The folder as the manifest knows it: other files do not exist, and what is read is compared first. */
function verifiedFiles(files: FolderFiles, manifest: BundleManifest): FolderFiles {
  const records = new Map<string, Promise<AdapterRecord>>();
  const recordOf = (name: string) => {
    const path = `adapters/${name}.json`;
    const known = records.get(path) ?? readRecord(files, path, manifest);
    records.set(path, known);
    // A failed download may be tried again.
    known.catch(() => records.delete(path));
    return known;
  };
  const expectedOf = async (path: string): Promise<FileRecord | undefined> => {
    const [, name, extension] = /^adapters\/(.+)\.(\w+)$/.exec(path) ?? [];
    if (name === undefined) return manifest.files[path];
    if (extension === "json") return undefined;
    return (await recordOf(name)).files[`${name}.${extension}`];
  };
  const isListed = (path: string) => Object.hasOwn(manifest.files, path);
  const isKnown = (path: string) => isListed(path) || path.startsWith("adapters/") || path === "manifest.json";
  const { digest, localPath } = files;
  return {
    ...files,
    exists: async (path) => isKnown(path) && (await files.exists(path)),
    async read(path) {
      const bytes = await files.read(path);
      const expected = await expectedOf(path);
      if (expected && !(digest && isListed(path))) {
        refuseSize(files.describe(path), expected.bytes, bytes.byteLength);
        refuseHash(files.describe(path), expected.sha256, await sha256(bytes));
      }
      return bytes;
    },
    // Without a way to hash a file in place, its bytes have to come through `read`.
    localPath: (path) => (digest ? localPath?.(path) : undefined),
  };
}

async function readRecord(files: FolderFiles, path: string, manifest: BundleManifest): Promise<AdapterRecord> {
  const file = files.describe(path);
  if (!(await files.exists(path))) {
    throw new InputError({ what: "the adapter has no record", file, fix: "Encode it for this bundle: run quad add." });
  }
  const record = await readJson(files, path, adapterRecordSchema);
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
  return record;
}

const fix = "Copy or build the bundle again; verify: false opens it nevertheless";

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

function refuseHash(file: string, expected: string, got: string): void {
  if (got === expected) return;
  throw new InputError({
    what: "is not the file that the manifest describes",
    file,
    expected: `SHA-256 ${expected}`,
    got: `SHA-256 ${got}`,
    fix,
  });
}
