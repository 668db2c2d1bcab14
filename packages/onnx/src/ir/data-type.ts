import { InputError } from "@quad-lora/base";

interface DataTypeFacts {
  /** Number of the type in ONNX's TensorProto.DataType. */
  code: number;
  /** Bits of one element in raw data; 0 where elements have no fixed size. */
  bits: number;
}

/** ONNX element types under the names ONNX Runtime's JavaScript API uses. Source: onnx.proto3, TensorProto.DataType. */
export const dataTypes = {
  float32: { code: 1, bits: 32 },
  uint8: { code: 2, bits: 8 },
  int8: { code: 3, bits: 8 },
  uint16: { code: 4, bits: 16 },
  int16: { code: 5, bits: 16 },
  int32: { code: 6, bits: 32 },
  int64: { code: 7, bits: 64 },
  string: { code: 8, bits: 0 },
  bool: { code: 9, bits: 8 },
  float16: { code: 10, bits: 16 },
  float64: { code: 11, bits: 64 },
  uint32: { code: 12, bits: 32 },
  uint64: { code: 13, bits: 64 },
  complex64: { code: 14, bits: 64 },
  complex128: { code: 15, bits: 128 },
  bfloat16: { code: 16, bits: 16 },
  float8e4m3fn: { code: 17, bits: 8 },
  float8e4m3fnuz: { code: 18, bits: 8 },
  float8e5m2: { code: 19, bits: 8 },
  float8e5m2fnuz: { code: 20, bits: 8 },
  uint4: { code: 21, bits: 4 },
  int4: { code: 22, bits: 4 },
  float4e2m1: { code: 23, bits: 4 },
  float8e8m0: { code: 24, bits: 8 },
  uint2: { code: 25, bits: 2 },
  int2: { code: 26, bits: 2 },
} as const satisfies Record<string, DataTypeFacts>;

/** Name of an ONNX element type. */
export type DataType = keyof typeof dataTypes;

const byCode = new Map<number, DataType>(
  Object.entries(dataTypes).map(([name, facts]) => [facts.code, name as DataType]),
);

/** The type with this TensorProto number. Throws {@link InputError} for numbers outside the specification. */
export function dataTypeOf(code: number, where: string): DataType {
  const type = byCode.get(code);
  if (!type) throw new InputError({ what: `unknown ONNX data type ${code}`, where });
  return type;
}

/** Bytes that `count` elements take in raw data (4-bit types pack two to a byte). */
export function byteSize(type: DataType, count: number): number {
  return Math.ceil((count * dataTypes[type].bits) / 8);
}

/** Whether elements are floating-point numbers of 16 bits or more. */
export function isFloat(type: DataType): boolean {
  return type === "float32" || type === "float16" || type === "float64" || type === "bfloat16";
}
