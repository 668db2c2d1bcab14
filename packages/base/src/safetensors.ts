/**
 * Safetensors files in memory: the header, then the tensors' bytes back to back.
 *
 * Typed-array views assume a little-endian machine, as every JavaScript engine in use runs on.
 */
import { InputError } from "./errors.ts";
import { decodeBfloat16, decodeFloat16, encodeBfloat16, encodeFloat16 } from "./float16.ts";
import {
  byteLengthOf,
  parseSafetensorsHeader,
  readSafetensorsHeaderLength,
  type SafetensorsDtype,
  serializeSafetensorsHeader,
} from "./safetensors-header.ts";

export {
  parseSafetensorsHeader,
  readSafetensorsHeaderLength,
  type SafetensorsDtype,
  type SafetensorsEntry,
  type SafetensorsHeader,
  serializeSafetensorsHeader,
} from "./safetensors-header.ts";

/** A tensor with its bytes: row-major, little-endian. */
export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** A parsed file; the tensors' bytes are views of the parsed buffer, in file order. */
export interface SafetensorsFile {
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** A tensor to be written; `data` holds exactly its bytes. */
export interface SafetensorsInput {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
}

/**
 * Parses a whole file in memory. Tensors are views of `bytes`: nothing is copied.
 * @param file - Name for error messages.
 * @throws InputError for every malformed file, see {@link parseSafetensorsHeader}.
 */
export function parseSafetensors(bytes: Uint8Array, file: string): SafetensorsFile {
  const headerLength = readSafetensorsHeaderLength(bytes.subarray(0, 8), bytes.length, file);
  const header = parseSafetensorsHeader(bytes.subarray(8, 8 + headerLength), bytes.length, file);
  const tensors = new Map<string, SafetensorsTensor>();
  for (const { name, dtype, shape, begin, end } of header.entries)
    tensors.set(name, {
      name,
      dtype,
      shape,
      bytes: bytes.subarray(header.dataStart + begin, header.dataStart + end),
    });
  return { tensors, metadata: header.metadata };
}

/**
 * The bytes of `data` as they go into a file.
 * @throws InputError where their number does not match dtype and shape.
 */
export function safetensorsBytes(tensor: SafetensorsInput): Uint8Array {
  const { name, dtype, shape, data } = tensor;
  const expected = byteLengthOf(dtype, shape);
  if (expected !== data.byteLength)
    throw new InputError({
      what: `the data does not match ${dtype} [${shape.join(", ")}]`,
      where: name,
      expected: `${expected} bytes`,
      got: `${data.byteLength} bytes`,
    });
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** A whole file in memory; see {@link serializeSafetensorsHeader} for order, padding and errors. */
export function serializeSafetensors(
  tensors: readonly SafetensorsInput[],
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array<ArrayBuffer> {
  const header = serializeSafetensorsHeader(tensors, metadata);
  const parts = tensors.map(safetensorsBytes);
  const file = new Uint8Array(parts.reduce((total, part) => total + part.length, header.length));
  file.set(header);
  let position = header.length;
  for (const part of parts) {
    file.set(part, position);
    position += part.length;
  }
  return file;
}

const arrayTypes = {
  BOOL: Uint8Array,
  U8: Uint8Array,
  I8: Int8Array,
  F8_E5M2: Uint8Array,
  F8_E4M3: Uint8Array,
  F8_E8M0: Uint8Array,
  F6_E2M3: Uint8Array,
  F6_E3M2: Uint8Array,
  F4: Uint8Array,
  I16: Int16Array,
  U16: Uint16Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  I32: Int32Array,
  U32: Uint32Array,
  F32: Float32Array,
  F64: Float64Array,
  I64: BigInt64Array,
  U64: BigUint64Array,
  C64: Float32Array,
} as const satisfies Record<SafetensorsDtype, unknown>;

/** The array type of each dtype: raw bits for F16, BF16 and the smaller floats, pairs of floats for C64. */
export type SafetensorsArray<D extends SafetensorsDtype = SafetensorsDtype> = InstanceType<(typeof arrayTypes)[D]>;

/** A typed array over the tensor's bytes: a view where they are aligned for the element type, a copy otherwise. */
export function toTypedArray(tensor: SafetensorsTensor): SafetensorsArray {
  const type = arrayTypes[tensor.dtype];
  const { bytes } = tensor;
  // Not slice(): that of Node's Buffer is a view, and no better aligned.
  const aligned = bytes.byteOffset % type.BYTES_PER_ELEMENT === 0 ? bytes : new Uint8Array(bytes);
  return new type(
    aligned.buffer as ArrayBuffer,
    aligned.byteOffset,
    aligned.byteLength / type.BYTES_PER_ELEMENT,
  ) as SafetensorsArray;
}

/**
 * The tensor's values as float32: a view for aligned F32, a new array otherwise (F64 and 64-bit integers are rounded).
 * @throws InputError for BOOL, C64 and floats below 16 bits.
 */
export function toFloat32(tensor: SafetensorsTensor, file?: string): Float32Array {
  const values = toTypedArray(tensor);
  switch (tensor.dtype) {
    case "F32":
      return values as Float32Array;
    case "F16":
      return decodeFloat16(values as Uint16Array);
    case "BF16":
      return decodeBfloat16(values as Uint16Array);
    case "F64":
    case "I8":
    case "U8":
    case "I16":
    case "U16":
    case "I32":
    case "U32":
      return Float32Array.from(values as Float64Array);
    case "I64":
    case "U64":
      return Float32Array.from(values as BigInt64Array, Number);
    default:
      throw new InputError({
        what: "cannot be read as numbers of 32 bits",
        file,
        where: tensor.name,
        expected: "F32, F16, BF16, F64 or integers",
        got: tensor.dtype,
        fix: "Convert the file to F16 or F32.",
      });
  }
}

/** The bytes of float32 values in another dtype, rounded to nearest even. */
export function fromFloat32(values: Float32Array, dtype: "F32" | "F16" | "BF16"): ArrayBufferView {
  if (dtype === "F32") return values;
  return dtype === "F16" ? encodeFloat16(values) : encodeBfloat16(values);
}
