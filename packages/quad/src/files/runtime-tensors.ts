import {
  encodeFloat16,
  InputError,
  type SafetensorsInput,
  type SafetensorsTensor,
  toFloat32,
  toTypedArray,
} from "@quad-lora/base";
import type { TensorData } from "@quad-lora/runtime";
import type { SafetensorsReader } from "./safetensors.ts";

const dtypes: Record<string, SafetensorsInput["dtype"]> = {
  float32: "F32",
  float16: "F16",
  float64: "F64",
  int64: "I64",
  int32: "I32",
  int16: "I16",
  int8: "I8",
  uint64: "U64",
  uint32: "U32",
  uint16: "U16",
  uint8: "U8",
  bool: "BOOL",
};

/**
 * Reads a file's tensors in the element types that the graph's inputs have. Floats become other floats, and integers
 * other integers or floats; float values do so for an integer input when they are whole numbers, as time steps are.
 * @throws InputError for tensors that are missing or cannot be converted
 */
export async function toRuntimeTensors(
  file: SafetensorsReader,
  inputs: readonly { name: string; type: string }[],
): Promise<Record<string, TensorData>> {
  const result: Record<string, TensorData> = {};
  for (const { name, type } of inputs) {
    const tensor = await file.read(name);
    const data = convert(tensor, type, file.path);
    if (!data) {
      throw new InputError({
        what: "the tensor's values cannot be converted to the graph's type",
        file: file.path,
        where: name,
        expected: type,
        got: tensor.dtype,
      });
    }
    result[name] = { type: type as TensorData["type"], dims: [...tensor.shape], data };
  }
  return result;
}

function convert(tensor: SafetensorsTensor, type: string, file: string): TensorData["data"] | null {
  if (dtypes[type] === tensor.dtype) return toTypedArray(tensor) as TensorData["data"];
  const isInteger = /^[IU]\d+$/.test(tensor.dtype);
  if (!isInteger && !/^B?F\d+$/.test(tensor.dtype)) return null;
  const numbers = isInteger
    ? Array.from(toTypedArray(tensor) as ArrayLike<number | bigint>, Number)
    : toFloat32(tensor, file);
  switch (type) {
    case "float32":
      return Float32Array.from(numbers);
    case "float16":
      return encodeFloat16(Float32Array.from(numbers));
    case "float64":
      return Float64Array.from(numbers);
    case "int64":
      return numbers.every(Number.isSafeInteger) ? BigInt64Array.from(numbers as ArrayLike<number>, BigInt) : null;
    case "int32":
      return numbers.every((number) => number === (number | 0)) ? Int32Array.from(numbers) : null;
    default:
      return null;
  }
}

/**
 * A file's tensor as a graph takes or gives it, in the file's element type.
 * @param file - for messages
 * @throws InputError for element types that graphs do not have
 */
export function fromSafetensors(tensor: SafetensorsTensor, file: string): TensorData {
  const type = Object.keys(dtypes).find((name) => dtypes[name] === tensor.dtype);
  if (type) return { type, dims: [...tensor.shape], data: toTypedArray(tensor) } as TensorData;
  throw new InputError({ what: `graphs have no ${tensor.dtype} tensors`, file, where: tensor.name });
}

/**
 * Tensors of a graph as those of a file.
 * @throws InputError for element types that safetensors files do not hold
 */
export function toSafetensors(tensors: Readonly<Record<string, TensorData>>): SafetensorsInput[] {
  return Object.entries(tensors).map(([name, { type, dims, data }]) => {
    const dtype = dtypes[type];
    if (!dtype) throw new InputError({ what: `safetensors files hold no ${type} tensors`, where: `tensor "${name}"` });
    return { name, dtype, shape: [...dims], data: data as ArrayBufferView };
  });
}
