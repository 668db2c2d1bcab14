import { checkRelativePath, InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import type { BundleIdentity } from "./adapter-file.ts";
import { parseJson } from "./files.ts";
import { sha256 } from "./sha256.ts";
import { taskSchema } from "./tasks.ts";

const hashSchema = z.string().check(z.regex(/^[0-9a-f]{64}$/, "expected a SHA-256 hash in lower-case hexadecimal"));

const fileSchema = z.strictObject({
  /** SHA-256 of the file's bytes, lower-case hexadecimal. */
  sha256: hashSchema,
  bytes: z.int().check(z.nonnegative()),
});
/** What a manifest says of a file. */
export type FileRecord = z.infer<typeof fileSchema>;

const qualitySchema = z.strictObject({
  /** Quantization sensitivity score against full precision, nats: 0 = the same, ln 2 = nothing in common. */
  qss: z.number(),
  /** Signal to quantization noise of the denoiser's outputs against full precision, dB; null where there is no noise. */
  sqnr: z.nullable(z.number()),
  /** Denoiser calls that both are taken over. */
  calls: z.int().check(z.positive()),
});
/** How near the quantized graph comes to full precision. */
export type BundleQuality = z.infer<typeof qualitySchema>;

/** The compiler's targets have names of its own; what the runtime has to know of one is said beside the name. */
const targetSchema = z.looseObject({
  kind: z.string().check(z.minLength(1)),
  /** The rank that all adapters are given with, where the graph's is fixed. */
  rank: z.optional(z.int().check(z.positive())),
  /** Operators of the graph beyond the ONNX standard, `DOMAIN.OPERATOR`: the ONNX Runtime that opens it has to have them. */
  operators: z.optional(z.array(z.string())),
});

/**
 * `manifest.json`: what a bundle consists of, but for its adapters, which have records of their own. Keys that a later
 * version adds and an earlier one can do without are kept; what changes a meaning comes with another version number.
 */
export const manifestSchema = z.looseObject({
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
  base: z.optional(qualitySchema),
  /** Every file outside `adapters/`, by its path in the bundle. */
  files: z.record(z.string(), fileSchema),
});
/** Content of a bundle's `manifest.json`. */
export type BundleManifest = z.infer<typeof manifestSchema>;

const fitSchema = z.strictObject({
  /** Measured by running the bundle beside full precision; left out where that was not at hand. */
  measured: z.optional(qualitySchema),
  /** Signal to noise of all the factors' products `A B` on the grid, dB; null where there is no noise. */
  productSqnr: z.nullable(z.number()),
  /** Relative error of the products, Frobenius norm, root mean square over slots. */
  alignmentError: z.number().check(z.nonnegative()),
  /** The same before alignment. */
  errorBeforeAlignment: z.number().check(z.nonnegative()),
  /** Share of the factors' values that the shared grid clips, 0 to 1. */
  clipped: z.number().check(z.minimum(0), z.maximum(1)),
});
/** How well an adapter fits a bundle's frozen scales. */
export type AdapterFit = z.infer<typeof fitSchema>;

const recordSchema = z.object({
  format: z.literal("quad-bundle-adapter"),
  version: z.literal(2, {
    error:
      "unknown version: this runtime reads version 2, in which a record has a hash of its own; build the bundle again",
  }),
  name: z.string(),
  /** Where it came from: a file name. */
  source: z.string(),
  /** The bundle it was encoded for, as the manifest has it. */
  graph: hashSchema,
  profile: hashSchema,
  rank: z.int().check(z.positive()),
  /** Slots it uses, of all components. */
  slots: z.int().check(z.positive()),
  /** Keys of the source that this bundle has no slot for. */
  withoutSlot: z._default(z.array(z.string()), []),
  fit: fitSchema,
  /** Defaults of the task of this name, where `tasks.json` does not have it. */
  task: z.optional(taskSchema),
  /** Its files in `adapters/`. */
  files: z.record(z.string(), fileSchema),
});
/** What a bundle records of one of its adapters. */
export type AdapterRecord = z.infer<typeof recordSchema>;

/** `adapters/NAME.json`: one adapter of a bundle. Unknown keys as in {@link manifestSchema}. */
export const adapterRecordSchema = z.looseObject({
  ...recordSchema.shape,
  /** Hash of the record itself, see {@link adapterRecordText}. */
  recordHash: hashSchema,
});

/**
 * The text of an adapter's record, closed by the SHA-256 of what stands before: of the record as `JSON.stringify` writes it
 * without spaces and without `recordHash`.
 */
export async function adapterRecordText(record: AdapterRecord): Promise<string> {
  const { recordHash: _, ...content } = record as AdapterRecord & { recordHash?: string };
  const recordHash = await sha256(new TextEncoder().encode(JSON.stringify(content)));
  return `${JSON.stringify({ ...content, recordHash }, null, 1)}\n`;
}

/**
 * Reads an adapter's record.
 *
 * @param text - content of `adapters/NAME.json`
 * @param file - how to name it in messages
 * @param name - the adapter that the file's name stands for
 * @throws InputError when it is broken, was changed after it was written, or is another adapter's
 */
export async function parseAdapterRecord(text: string, file: string, name: string): Promise<AdapterRecord> {
  const record = parseJson(text, file, adapterRecordSchema);
  const { recordHash, ...content } = JSON.parse(text.replace(/^\ufeff/, "")) as Record<string, unknown>;
  const got = await sha256(new TextEncoder().encode(JSON.stringify(content)));
  const fix = "Copy the adapter's files again, or encode the LoRA again: run quad add.";
  if (got !== recordHash) {
    throw new InputError({
      ...{ what: "was changed after it was written", file, where: "recordHash" },
      ...{ expected: String(recordHash), got, fix },
    });
  }
  if (record.name !== name) {
    throw new InputError({ what: "is the record of another adapter", file, expected: name, got: record.name, fix });
  }
  for (const path of Object.keys(record.files)) {
    checkRelativePath(path, { file, where: "files" });
    if (path.startsWith(`${name}.`) && !path.includes("/")) continue;
    throw new InputError({
      what: "lists another adapter's file",
      file,
      where: `files.${path}`,
      expected: `${name}.*`,
      fix,
    });
  }
  return record;
}

/** Reads a manifest. @throws InputError when it is broken, or names files outside of the bundle */
export function parseManifest(text: string, file: string): BundleManifest {
  const manifest = parseJson(text, file, manifestSchema);
  checkRelativePath(manifest.component, { file, where: "component" });
  for (const path of Object.keys(manifest.files)) checkRelativePath(path, { file, where: "files" });
  return manifest;
}

/** What an adapter's codes are tied to. */
export function identityOf({ graph, profile }: BundleManifest): BundleIdentity {
  return { graph, profile };
}
