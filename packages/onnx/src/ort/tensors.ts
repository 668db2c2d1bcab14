import * as ort from "onnxruntime-node";
import type { DataType } from "../ir/data-type.ts";
import { memorySource, Tensor } from "../ir/tensor.ts";

/** An ONNX Runtime tensor over the same bytes where alignment allows. */
export function toOrt(tensor: Tensor): ort.Tensor {
  if (tensor.strings) {
    return new ort.Tensor(
      "string",
      tensor.strings.map((bytes) => new TextDecoder().decode(bytes)),
      tensor.dims,
    );
  }
  return new ort.Tensor(tensor.dataType as ort.Tensor.Type, tensor.array() as ort.Tensor.DataType, tensor.dims);
}

/** Copies nothing: the result views the runtime tensor's data. */
export function fromOrt(tensor: ort.Tensor): Tensor {
  const data = tensor.data;
  if (!ArrayBuffer.isView(data)) {
    const strings = (data as string[]).map((text) => new TextEncoder().encode(text));
    return new Tensor("string", tensor.dims, memorySource(new Uint8Array(0)), strings);
  }
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return new Tensor(tensor.type as DataType, tensor.dims, memorySource(bytes));
}
