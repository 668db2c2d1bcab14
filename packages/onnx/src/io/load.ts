import { readFileSync, statSync } from "node:fs";
import { fromBinary } from "@bufbuild/protobuf";
import { InputError } from "@quad-lora/base";
import { type ModelProto, ModelProtoSchema } from "onnx-buf";
import type { Model } from "../ir/model.ts";
import { modelFromProto, type ReadOptions } from "./read-proto.ts";

const protobufLimit = 2 ** 31 - 1;

/**
 * Reads an ONNX file. Weights stay where they are: inline tensors are views of the file's bytes, external ones are
 * read from their file whenever asked for.
 * @throws InputError for files that are missing, not ONNX, truncated, or whose external data does not fit
 */
export function loadModel(path: string, options: Omit<ReadOptions, "file"> = {}): Model {
  let bytes: Uint8Array;
  try {
    const { size } = statSync(path);
    if (size > protobufLimit) {
      throw new InputError({
        what: "larger than protobuf allows",
        file: path,
        expected: "at most 2 GB",
        got: `${(size / 1e9).toFixed(1)} GB`,
        fix: "Export it with external data.",
      });
    }
    const buffer = readFileSync(path);
    // A Buffer's slice() is a view, a Uint8Array's a copy: tensors rely on the latter.
    bytes = new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  } catch (error) {
    if (error instanceof InputError) throw error;
    throw new InputError({
      what: `cannot be read: ${(error as NodeJS.ErrnoException).code ?? error}`,
      file: path,
      fix: "Check the path.",
    });
  }
  return decodeModel(bytes, { ...options, file: path });
}

/** Reads a model from the bytes of an ONNX file; `file` names it in messages and locates external data. */
export function decodeModel(bytes: Uint8Array, options: ReadOptions): Model {
  let proto: ModelProto;
  try {
    proto = fromBinary(ModelProtoSchema, bytes);
  } catch (error) {
    throw new InputError({
      what: `not an ONNX file, or cut off: ${(error as Error).message}`,
      file: options.file,
      fix: "Copy or export it again.",
    });
  }
  return modelFromProto(proto, options);
}
