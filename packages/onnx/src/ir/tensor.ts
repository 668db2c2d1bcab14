import { byteSize, type DataType } from "./data-type.ts";

/** Where a tensor's raw little-endian bytes come from. Sources outside memory are read anew on every call. */
export interface TensorSource {
  readonly byteLength: number;
  /** Bytes `[start, end)` of the tensor; the whole tensor without arguments. May be a view: do not write into it. */
  read(start?: number, end?: number): Uint8Array;
  /** For bytes that lie in a file: its absolute path and the offset of the first byte. */
  readonly file?: { readonly path: string; readonly offset: number };
}

const arrayTypes = {
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  int8: Int8Array,
  bool: Uint8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
} as const;

type ArrayTypes = typeof arrayTypes;
/** Element types that JavaScript has a typed array for; float16 and bfloat16 are read as their 16-bit patterns. */
export type NumericDataType = keyof ArrayTypes;
/** The typed array of an element type. */
export type ArrayOf<T extends NumericDataType> = InstanceType<ArrayTypes[T]>;
/** Whether JavaScript has a typed array for elements of this type. */
export function isNumeric(dataType: DataType): dataType is NumericDataType {
  return dataType in arrayTypes;
}

/** A typed array of any of the element types. */
export type TensorArray = ArrayOf<NumericDataType>;

/** A constant: element type, dimensions (row-major) and a source of bytes. Immutable. */
export class Tensor {
  readonly dataType: DataType;
  readonly dims: readonly number[];
  readonly source: TensorSource;
  /** Elements of a string tensor, UTF-8; other types have none. */
  readonly strings?: readonly Uint8Array[];

  constructor(dataType: DataType, dims: readonly number[], source: TensorSource, strings?: readonly Uint8Array[]) {
    this.dataType = dataType;
    this.dims = dims;
    this.source = source;
    if (strings) this.strings = strings;
  }

  /** A tensor over an array in memory. float16 and bfloat16 take their bit patterns as Uint16Array. */
  static of<T extends NumericDataType>(dataType: T, dims: readonly number[], values: ArrayOf<T>): Tensor {
    const count = elementCount(dims);
    if (values.length !== count) {
      throw new RangeError(`tensor [${dims}] needs ${count} elements, got ${values.length}`);
    }
    return new Tensor(
      dataType,
      dims,
      memorySource(new Uint8Array(values.buffer, values.byteOffset, values.byteLength)),
    );
  }

  static float32(dims: readonly number[], values: ArrayLike<number>): Tensor {
    return Tensor.of(
      "float32",
      dims,
      values instanceof Float32Array ? (values as Float32Array<ArrayBuffer>) : Float32Array.from(values),
    );
  }

  static int64(dims: readonly number[], values: Iterable<number | bigint>): Tensor {
    return Tensor.of("int64", dims, BigInt64Array.from(values, BigInt));
  }

  /** A zero-dimensional float32 tensor. */
  static scalar(value: number): Tensor {
    return Tensor.float32([], [value]);
  }

  get elementCount(): number {
    return elementCount(this.dims);
  }

  get byteLength(): number {
    return this.source.byteLength;
  }

  /** Raw little-endian bytes. */
  bytes(): Uint8Array {
    return this.source.read();
  }

  /** Elements as the type's typed array (a view where alignment allows). Throws for types JavaScript has no array for. */
  array(): TensorArray {
    if (!isNumeric(this.dataType)) throw new TypeError(`no typed array holds ${this.dataType}`);
    const ArrayType = arrayTypes[this.dataType];
    const bytes = this.bytes();
    const aligned = bytes.byteOffset % ArrayType.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
    return new ArrayType(aligned.buffer as ArrayBuffer, aligned.byteOffset, this.elementCount);
  }

  /** Elements as float32. Throws for types other than float32, float64, and integers of at most 32 bits. */
  toFloat32(): Float32Array {
    const values = this.array();
    if (values instanceof Float32Array) return values;
    if (this.dataType === "float16") return Float32Array.from(values as Uint16Array, halfToNumber);
    if (this.dataType === "bfloat16") return bfloat16ToFloat32(values as Uint16Array);
    return Float32Array.from(values as ArrayLike<number | bigint>, Number);
  }

  /** Elements as numbers; 64-bit integers beyond 2^53 lose precision. */
  toNumbers(): number[] {
    return this.dataType === "float16" || this.dataType === "bfloat16"
      ? Array.from(this.toFloat32())
      : Array.from(this.array() as ArrayLike<number | bigint>, Number);
  }
}

/** A source of bytes that are in memory. They are not copied and must not change. */
export function memorySource(bytes: Uint8Array): TensorSource {
  return { byteLength: bytes.byteLength, read: (start = 0, end = bytes.byteLength) => bytes.subarray(start, end) };
}

/** Contents of the source that was read last: files are written in pieces, and a piece must not compute all again. */
let latest: { source: TensorSource; bytes: Uint8Array } | null = null;

/** A source of bytes that are computed whenever they are read, and not kept: weights that follow from others. */
export function computedSource(byteLength: number, compute: () => Uint8Array): TensorSource {
  const source: TensorSource = {
    byteLength,
    read(start = 0, end = byteLength) {
      if (latest?.source !== source) latest = { source, bytes: compute() };
      return latest.bytes.subarray(start, end);
    },
  };
  return source;
}

/** Product of the dimensions; 1 for a scalar. */
export function elementCount(dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * dim, 1);
}

/** Bytes a tensor of this type and shape takes. */
export function tensorByteSize(dataType: DataType, dims: readonly number[]): number {
  return byteSize(dataType, elementCount(dims));
}

function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function bfloat16ToFloat32(bits: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(bits, (value) => value << 16).buffer);
}
