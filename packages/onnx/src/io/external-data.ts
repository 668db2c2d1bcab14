import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { dirname, isAbsolute, join, relative } from "node:path";
import { InputError } from "@quad-lora/base";
import type { TensorSource } from "../ir/tensor.ts";
import { leavesFolder, linkLeavesFolder } from "./links.ts";

/** What a model file says about a tensor kept in another file. Source: onnx.proto3, TensorProto.external_data. */
export interface ExternalReference {
  location: string;
  offset: number;
  /** Bytes; null where the file leaves it out, which means: as many as type and shape need. */
  length: number | null;
}

/** Absolute path of an external location. Throws {@link InputError} if it leaves the model's folder, by name or by link, other than into the Hugging Face cache's own blobs. */
export function resolveExternal(modelFile: string, tensor: string, location: string): string {
  const folder = dirname(modelFile);
  const refuse = (what: string) =>
    new InputError({
      what,
      file: modelFile,
      where: `tensor "${tensor}"`,
      expected: "a file inside the model's own folder",
      got: `"${location}"`,
      fix: "Save the model again with its data file beside it.",
    });
  const path = join(folder, location);
  if (location === "" || isAbsolute(location) || leavesFolder(relative(folder, path))) {
    throw refuse("external data path leaves the folder");
  }
  let leaves: boolean;
  try {
    leaves = linkLeavesFolder(folder, path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return path; // missing: the source says so when it is read
    throw refuse(`external data path cannot be followed (${code})`);
  }
  if (leaves) throw refuse("external data path leads out of the folder through a link");
  return path;
}

/**
 * A source that reads a tensor's bytes from its file when asked. Presence and length are checked at once
 * unless `mayBeMissing`, and then on the first read.
 */
export function externalSource(
  path: string,
  tensor: string,
  offset: number,
  byteLength: number,
  mayBeMissing: boolean,
): TensorSource {
  let stamp: number | null = null;
  const check = () => {
    const file = fileFacts(path);
    if (file === null) {
      throw new InputError({
        what: "external data file is missing",
        file: path,
        where: `tensor "${tensor}"`,
        fix: "Copy it beside the model file; the two belong together.",
      });
    }
    if (stamp !== null && stamp !== file.changed) {
      throw new InputError({
        what: "external data file was replaced after the model was loaded",
        file: path,
        where: `tensor "${tensor}"`,
        fix: "Load the model again.",
      });
    }
    stamp = file.changed;
    if (offset + byteLength > file.size) {
      throw new InputError({
        what: "external data file is too short",
        file: path,
        where: `tensor "${tensor}"`,
        expected: `at least ${offset + byteLength} bytes`,
        got: `${file.size}`,
        fix: "The file was cut off or belongs to another model; copy it again.",
      });
    }
  };
  if (!mayBeMissing) check();
  return {
    byteLength,
    file: { path, offset },
    read(start = 0, end = byteLength) {
      check();
      return readRange(path, offset + start, end - start);
    },
  };
}

function readRange(path: string, position: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const descriptor = openSync(path, "r");
  try {
    if (position + length > fstatSync(descriptor).size) {
      throw new InputError({ what: "file changed while it was read", file: path });
    }
    for (let done = 0; done < length; ) {
      const count = readSync(descriptor, bytes, done, Math.min(length - done, 1 << 30), position + done);
      if (count === 0) throw new InputError({ what: "file ended early", file: path });
      done += count;
    }
  } finally {
    closeSync(descriptor);
  }
  return bytes;
}

function fileFacts(path: string): { size: number; changed: number } | null {
  try {
    const facts = statSync(path);
    return facts.isFile() ? { size: facts.size, changed: facts.mtimeMs } : null;
  } catch {
    return null;
  }
}
