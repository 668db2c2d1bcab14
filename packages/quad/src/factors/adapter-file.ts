import { openSafetensors } from "../files/safetensors.ts";

/** An adapter as exposed folders and distillation write it. */
export interface AdapterFile {
  rank: number;
  /** Factors by graph input, in full precision. */
  tensors: Map<string, Float32Array>;
  metadata: Readonly<Record<string, string>>;
}

/** @throws InputError for a file that is not there or no safetensors file */
export async function readAdapterFile(path: string): Promise<AdapterFile> {
  const file = await openSafetensors(path);
  try {
    const tensors = new Map<string, Float32Array>();
    for (const name of file.entries.keys()) tensors.set(name, await file.readFloat32(name));
    return { rank: Number(file.metadata["quad.rank"]), tensors, metadata: file.metadata };
  } finally {
    await file.close();
  }
}
