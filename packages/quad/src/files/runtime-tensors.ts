import { InputError } from "@quad/onnx";
import { type SafetensorsInput, type TensorData, toFloat32 } from "@quad/runtime";
import type { SafetensorsReader } from "./safetensors.ts";

const dtypes: Record<string, SafetensorsInput["dtype"]> = {
  float32: "F32",
  float16: "F16",
  float64: "F64",
  int64: "I64",
  int32: "I32",
  int16: "I16",
  int8: "I8",
  uint8: "U8",
  uint16: "U16",
  bool: "BOOL",
};

/** Reads a file's tensors in the element types that the graph's inputs have; floats and integers are converted among themselves. */
export async function toRuntimeTensors(
  file: SafetensorsReader,
  inputs: readonly { name: string; type: string }[],
): Promise<Record<string, TensorData>> {
  const result: Record<string, TensorData> = {};
  for (const { name, type } of inputs) {
    const tensor = await file.read(name);
    const dims = [...tensor.shape];
    const isInteger = /^[IU]/.test(tensor.dtype);
    if (type === "float32" && !isInteger) {
      result[name] = { type, dims, data: toFloat32(tensor, file.path) };
    } else if (tensor.dtype === "I64" && type === "int64") {
      result[name] = { type, dims, data: new BigInt64Array(tensor.bytes.slice().buffer) };
    } else if (tensor.dtype === "I32" && type === "int64") {
      result[name] = { type, dims, data: BigInt64Array.from(new Int32Array(tensor.bytes.slice().buffer), BigInt) };
    } else if (tensor.dtype === "I64" && type === "float32") {
      result[name] = { type, dims, data: Float32Array.from(new BigInt64Array(tensor.bytes.slice().buffer), Number) };
    } else if (tensor.dtype === "F16" && type === "float16") {
      result[name] = { type, dims, data: new Uint16Array(tensor.bytes.slice().buffer) };
    } else {
      throw new InputError({
        what: "wrong element type",
        file: file.path,
        where: name,
        expected: type,
        got: tensor.dtype,
      });
    }
  }
  return result;
}

export function toSafetensors(tensors: Readonly<Record<string, TensorData>>): SafetensorsInput[] {
  return Object.entries(tensors).map(([name, { type, dims, data }]) => ({
    name,
    dtype: dtypes[type],
    shape: [...dims],
    data: data as ArrayBufferView,
  }));
}
