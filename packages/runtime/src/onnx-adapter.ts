/**
 * ONNX Runtime's adapter files (`.onnx_adapter`): named tensors that its C, C++, C#, Java and Python APIs bind to the
 * graph inputs of the same names. FlatBuffers by the schema `onnxruntime/lora/adapter_format/adapter_schema.fbs`:
 *
 *     table Parameter { name: string; dims: [int64]; data_type: int32; raw_data: [uint8] (force_align: 8); }
 *     table Adapter { format_version: int; adapter_version: int; model_version: int; parameters: [Parameter]; }
 *     root_type Adapter; file_identifier "TORT";
 */

import { InputError } from "@quad-lora/base";
import { Builder } from "flatbuffers";

/** Numbers of ONNX's TensorProto.DataType. */
const dataTypes = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int16: 5,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  uint32: 12,
  uint64: 13,
  bfloat16: 16,
} as const;

const elementBytes: Record<OnnxAdapterDataType, number> = {
  float32: 4,
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  int32: 4,
  int64: 8,
  bool: 1,
  float16: 2,
  float64: 8,
  uint32: 4,
  uint64: 8,
  bfloat16: 2,
};

/** Element types a parameter can have, named as in ONNX Runtime's JavaScript API. */
export type OnnxAdapterDataType = keyof typeof dataTypes;

/** A tensor for the graph input of the same name. */
export interface OnnxAdapterParameter {
  readonly name: string;
  readonly dataType: OnnxAdapterDataType;
  readonly dims: readonly number[];
  /** Elements, row-major, little-endian. */
  readonly data: Uint8Array;
}

/** The content of an `.onnx_adapter` file. */
export interface OnnxAdapter {
  /** The author's own version of the adapter, a 32-bit integer. */
  readonly adapterVersion: number;
  /** The author's own version of the model it is for, a 32-bit integer. */
  readonly modelVersion: number;
  readonly parameters: readonly OnnxAdapterParameter[];
}

const identifier = "TORT";
const formatVersion = 1;
const dataAlignment = 8;
/** FlatBuffers addresses with 32 bits, signed in parts. */
const largestFile = 2 ** 31 - 1;

/** Fields by their place in the tables' declarations. */
const adapterField = { formatVersion: 0, adapterVersion: 1, modelVersion: 2, parameters: 3 };
const parameterField = { name: 0, dims: 1, dataType: 2, data: 3 };

/**
 * The bytes of an `.onnx_adapter` file. Every tensor's data starts at a multiple of 8 bytes.
 * @throws InputError for two parameters of one name, for data that does not fit its shape, and beyond 2 GB
 */
export function writeOnnxAdapter(adapter: OnnxAdapter): Uint8Array {
  let size = 1024;
  const names = new Set<string>();
  for (const { name, dataType, dims, data } of adapter.parameters) {
    checkParameter({ name, dataType, dims, byteLength: data.byteLength }, names, "onnx adapter");
    size += data.byteLength + 4 * name.length + 8 * dims.length + 128;
  }
  if (size > largestFile)
    throw new InputError({
      what: "the adapter is too large for an .onnx_adapter file",
      expected: "less than 2 GB",
      got: `${size} bytes`,
      fix: "Split it, store it in float16 or 8 bits, or use safetensors.",
    });
  const builder = new Builder(size);
  const tables = adapter.parameters.map(({ name, dataType, dims, data }) => {
    const nameOffset = builder.createString(name);
    builder.startVector(8, dims.length, 8);
    for (const dim of dims.toReversed()) builder.addInt64(BigInt(dim));
    const dimsOffset = builder.endVector();
    // Pads so that the vector's first element, written next, comes to lie on the boundary.
    builder.prep(dataAlignment, data.byteLength);
    const dataOffset = builder.createByteVector(data);
    builder.startObject(4);
    builder.addFieldOffset(parameterField.data, dataOffset, 0);
    builder.addFieldInt32(parameterField.dataType, dataTypes[dataType], 0);
    builder.addFieldOffset(parameterField.dims, dimsOffset, 0);
    builder.addFieldOffset(parameterField.name, nameOffset, 0);
    return builder.endObject();
  });
  builder.startVector(4, tables.length, 4);
  for (const table of tables.toReversed()) builder.addOffset(table);
  const parameters = builder.endVector();
  builder.startObject(4);
  builder.addFieldOffset(adapterField.parameters, parameters, 0);
  builder.addFieldInt32(adapterField.modelVersion, adapter.modelVersion, 0);
  builder.addFieldInt32(adapterField.adapterVersion, adapter.adapterVersion, 0);
  builder.addFieldInt32(adapterField.formatVersion, formatVersion, 0);
  builder.finish(builder.endObject(), identifier);
  return builder.asUint8Array().slice();
}

/**
 * Reads an `.onnx_adapter` file. Nothing in it is trusted: every offset is checked against the file's length.
 * @param bytes - the whole file; the tensors' data are views into it, not necessarily aligned
 * @param file - its name, for messages
 * @throws InputError where the file is not an adapter, is damaged, has another format version, or holds an element type
 * this toolkit does not know
 */
export function readOnnxAdapter(bytes: Uint8Array, file: string): OnnxAdapter {
  const reader = new TableReader(bytes, file);
  const found = bytes.byteLength >= 8 ? String.fromCharCode(...bytes.subarray(4, 8)) : "";
  if (found !== identifier)
    throw new InputError({
      what: "not an .onnx_adapter file",
      file,
      expected: `the identifier ${identifier} at byte 4`,
      got: found === "" ? `${bytes.byteLength} bytes` : JSON.stringify(found),
    });
  const root = reader.indirect(0);
  const version = reader.int32Field(root, adapterField.formatVersion);
  if (version !== formatVersion)
    throw new InputError({
      what: "unknown format version of an .onnx_adapter file",
      file,
      expected: String(formatVersion),
      got: String(version),
      fix: "Write it again with ONNX Runtime 1.20 or newer, or update this software.",
    });
  const names = new Set<string>();
  const list = reader.vectorField(root, adapterField.parameters, 4);
  const parameters: OnnxAdapterParameter[] = [];
  for (let index = 0; index < (list?.count ?? 0); index++)
    parameters.push(readParameter(reader, reader.indirect(list!.start + 4 * index), index, names, file));
  return {
    adapterVersion: reader.int32Field(root, adapterField.adapterVersion),
    modelVersion: reader.int32Field(root, adapterField.modelVersion),
    parameters,
  };
}

function readParameter(
  reader: TableReader,
  table: number,
  index: number,
  names: Set<string>,
  file: string,
): OnnxAdapterParameter {
  const nameBytes = reader.vectorField(table, parameterField.name, 1);
  if (!nameBytes) throw new InputError({ what: "a parameter has no name", file, where: `parameter ${index}` });
  const name = new TextDecoder("utf-8", { ignoreBOM: true }).decode(reader.slice(nameBytes));
  const number = reader.int32Field(table, parameterField.dataType);
  const known = Object.entries(dataTypes).find(([, value]) => value === number);
  if (!known)
    throw new InputError({
      what: "unsupported element type",
      file,
      where: name,
      expected: Object.keys(dataTypes).join(", "),
      got: `ONNX data type ${number}`,
    });
  const dataType = known[0] as OnnxAdapterDataType;
  const dimsVector = reader.vectorField(table, parameterField.dims, 8);
  const dims = Array.from({ length: dimsVector?.count ?? 0 }, (_, i) => reader.int64(dimsVector!.start + 8 * i));
  const dataVector = reader.vectorField(table, parameterField.data, 1);
  const data = dataVector ? reader.slice(dataVector) : new Uint8Array(0);
  checkParameter({ name, dataType, dims, byteLength: data.byteLength }, names, file);
  return { name, dataType, dims, data };
}

function checkParameter(
  { name, dataType, dims, byteLength }: Omit<OnnxAdapterParameter, "data"> & { byteLength: number },
  names: Set<string>,
  file: string,
): void {
  if (names.has(name)) throw new InputError({ what: "two parameters have the same name", file, where: name });
  names.add(name);
  const isShape = dims.every((dim) => Number.isSafeInteger(dim) && dim >= 0);
  const expected = dims.reduce((product, dim) => product * dim, elementBytes[dataType]);
  if (!isShape || expected !== byteLength)
    throw new InputError({
      what: "a parameter's data does not fit its shape",
      file,
      where: name,
      expected: isShape ? `${expected} bytes for ${dataType} [${dims.join(", ")}]` : "dimensions of 0 or more",
      got: isShape ? `${byteLength} bytes` : `[${dims.join(", ")}]`,
    });
}

/** Elements of a FlatBuffers vector: the first one's position and their number. */
interface Vector {
  readonly start: number;
  readonly count: number;
  readonly bytes: number;
}

/** Reads FlatBuffers with bounds checks: positions are offsets from the start of the file. */
class TableReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #file: string;

  constructor(bytes: Uint8Array, file: string) {
    // Not the caller's object: a Node.js Buffer would hand out Buffers.
    this.#bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#file = file;
  }

  #check(position: number, length: number): number {
    if (position >= 0 && position + length <= this.#bytes.byteLength) return position;
    throw new InputError({
      what: "the .onnx_adapter file is damaged or cut short",
      file: this.#file,
      expected: `${length} bytes at offset ${position}`,
      got: `a file of ${this.#bytes.byteLength} bytes`,
    });
  }

  #uint32(position: number): number {
    return this.#view.getUint32(this.#check(position, 4), true);
  }

  /** Follows the offset stored at `position`. */
  indirect(position: number): number {
    return position + this.#uint32(position);
  }

  /** Position of a table's field; null where it is left out, which means its default. */
  #field(table: number, field: number): number | null {
    const vtable = table - this.#view.getInt32(this.#check(table, 4), true);
    const vtableBytes = this.#view.getUint16(this.#check(vtable, 2), true);
    this.#check(vtable, vtableBytes);
    const entry = 4 + 2 * field;
    if (entry + 2 > vtableBytes) return null;
    const offset = this.#view.getUint16(vtable + entry, true);
    return offset === 0 ? null : table + offset;
  }

  int32Field(table: number, field: number): number {
    const position = this.#field(table, field);
    return position === null ? 0 : this.#view.getInt32(this.#check(position, 4), true);
  }

  vectorField(table: number, field: number, bytesPerElement: number): Vector | null {
    const position = this.#field(table, field);
    if (position === null) return null;
    const vector = this.indirect(position);
    const count = this.#uint32(vector);
    const bytes = count * bytesPerElement;
    return { start: this.#check(vector + 4, bytes), count, bytes };
  }

  /** A 64-bit integer as a number; beyond 2^53 it is not a dimension and not exact. */
  int64(position: number): number {
    return Number(this.#view.getBigInt64(this.#check(position, 8), true));
  }

  slice({ start, bytes }: Vector): Uint8Array {
    return this.#bytes.subarray(start, start + bytes);
  }
}
