import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { adapterMetadata } from "@quad-lora/runtime";
import { openSafetensors } from "../files/safetensors.ts";

/** An adapter as exposed folders and distillation write it. */
export interface FactorFile {
  rank: number;
  /** Factors by graph input, in full precision. */
  tensors: Map<string, Float32Array>;
  metadata: Readonly<Record<string, string>>;
}

/** Where a folder keeps an adapter's factors. */
export function factorPath(folder: string, adapter: string): string {
  return join(folder, "adapters", `${adapter}.safetensors`);
}

/** Metadata of a file of factors. @param source - name of the LoRA file that they are from */
export function factorMetadata(rank: number, source?: string): Record<string, string> {
  return { [adapterMetadata.rank]: String(rank), ...(source === undefined ? {} : { [sourceKey]: source }) };
}

/** Metadata key for the LoRA file that factors are from. */
export const sourceKey = "quad.source";

/** @throws InputError for a file that is not there, is not a safetensors file, or does not say its rank */
export async function readFactorFile(path: string): Promise<FactorFile> {
  const file = await openSafetensors(path);
  try {
    const rank = Number(file.metadata[adapterMetadata.rank]);
    if (!Number.isInteger(rank) || rank < 1) {
      throw new InputError({
        what: "the adapter's file does not say its rank",
        file: path,
        where: adapterMetadata.rank,
        expected: "a positive integer",
        got: file.metadata[adapterMetadata.rank] ?? "nothing",
        fix: "Run quad expose again.",
      });
    }
    const tensors = new Map<string, Float32Array>();
    for (const name of file.entries.keys()) tensors.set(name, await file.readFloat32(name));
    return { rank, tensors, metadata: file.metadata };
  } finally {
    await file.close();
  }
}
