// For applications whose lib has no Symbol.asyncDispose: it is in the declarations of a public interface.
/// <reference lib="esnext.disposable" preserve="true" />
import { type FileHandle, open } from "node:fs/promises";
import {
  InputError,
  parseSafetensorsHeader,
  readSafetensorsHeaderLength,
  type SafetensorsEntry,
  type SafetensorsInput,
  type SafetensorsTensor,
  safetensorsBytes,
  serializeSafetensorsHeader,
  toFloat32,
} from "@quad-lora/base";
import { writeFileAtomically } from "./atomic.ts";

/** A safetensors file on disk: the header is in memory, tensors are read one by one. Close it after use. */
export interface SafetensorsReader extends AsyncDisposable {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** By name, in the order of the data. */
  readonly entries: ReadonlyMap<string, SafetensorsEntry>;
  /**
   * Reads one tensor into memory of its own.
   * @throws InputError where the file has no such tensor or was cut short after opening.
   */
  read(name: string): Promise<SafetensorsTensor>;
  /** Reads one tensor as float32, see `toFloat32` of the runtime. */
  readFloat32(name: string): Promise<Float32Array>;
  close(): Promise<void>;
}

/** A tensor to be written, its data at hand or made when its turn comes. */
export interface LazySafetensorsInput extends Omit<SafetensorsInput, "data"> {
  readonly data: ArrayBufferView | (() => ArrayBufferView | Promise<ArrayBufferView>);
}

/**
 * Opens a file and checks its header; no tensor is read.
 * @throws InputError where the file is missing or malformed, see `parseSafetensorsHeader` of the runtime.
 */
export async function openSafetensors(path: string): Promise<SafetensorsReader> {
  const handle = await openFile(path);
  try {
    const { size } = await handle.stat();
    const start = await readExactly(handle, path, 0, Math.min(8, size));
    const headerLength = readSafetensorsHeaderLength(start, size, path);
    const header = await readExactly(handle, path, 8, headerLength);
    const { entries, metadata, dataStart } = parseSafetensorsHeader(header, size, path);
    const byName = new Map(entries.map((entry) => [entry.name, entry]));
    const read = async (name: string): Promise<SafetensorsTensor> => {
      const entry = byName.get(name);
      if (!entry) throw new InputError({ what: "the file has no such tensor", file: path, where: name });
      const { dtype, shape, begin, end } = entry;
      return { name, dtype, shape, bytes: await readExactly(handle, path, dataStart + begin, end - begin) };
    };
    return {
      path,
      metadata,
      entries: byName,
      read,
      readFloat32: async (name) => toFloat32(await read(name), path),
      close: () => handle.close(),
      [Symbol.asyncDispose]: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/**
 * Writes a file, tensor by tensor, to a temporary name and renames it. Same input, same bytes.
 * @throws InputError for duplicate names and for data that does not match dtype and shape.
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly LazySafetensorsInput[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const header = serializeSafetensorsHeader(tensors, metadata);
  await writeFileAtomically(path, parts());

  async function* parts(): AsyncGenerator<Uint8Array> {
    yield header;
    for (const tensor of tensors) {
      const data = typeof tensor.data === "function" ? await tensor.data() : tensor.data;
      yield safetensorsBytes({ ...tensor, data });
    }
  }
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    const handle = await open(path, "r");
    if ((await handle.stat()).isFile()) return handle;
    await handle.close();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "ENOENT" && code !== "ENOTDIR" && code !== "EACCES" && code !== "EISDIR") throw error;
    throw new InputError({
      what: code === "EACCES" ? "the file may not be read" : "the file does not exist",
      file: path,
      fix: "Check the path.",
    });
  }
  throw new InputError({ what: "not a file", file: path, fix: "Give the path of a .safetensors file." });
}

async function readExactly(handle: FileHandle, path: string, position: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await handle.read(bytes, done, length - done, position + done);
    if (bytesRead === 0) throw new InputError({ what: "the file was cut short while it was being read", file: path });
    done += bytesRead;
  }
  return bytes;
}
