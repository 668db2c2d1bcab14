import { InputError } from "@quad-lora/base";
import { openSafetensors } from "./safetensors.ts";

/**
 * Reads the tensor with one of the given names, or the only tensor of the file, as float32.
 * @throws InputError if the file has several tensors and none of these names
 */
export async function readSafetensorsTensor(path: string, names: readonly string[]): Promise<Float32Array> {
  const file = await openSafetensors(path);
  try {
    const keys = [...file.entries.keys()];
    const name = names.find((candidate) => file.entries.has(candidate)) ?? (keys.length === 1 ? keys[0] : undefined);
    if (name !== undefined) return await file.readFloat32(name);
    throw new InputError({
      what: "cannot tell which tensor is meant",
      file: path,
      expected: `one tensor, or one named ${names.join(" or ")}`,
      got: keys.slice(0, 5).join(", "),
    });
  } finally {
    await file.close();
  }
}
