import type { Node, Tensor, Value } from "@quad-lora/onnx";
import { type BitWidth, type Encoding, weightEncoding } from "../quantization/index.ts";

/** How the base's weights are quantized, symmetric and per output channel. */
export interface WeightOptions {
  weightBits: BitWidth;
  /** How scales are found. */
  weightMethod: "min-max" | "mse";
}

/** Axis of a layer's output channels in its weight, as the node reads it. */
export function weightAxis(node: Node): number {
  if (node.opType === "Conv") return 0;
  return node.opType === "Gemm" && node.int("transB", 0) === 1 ? 0 : 1;
}

const knownEncodings = new WeakMap<Tensor, Map<string, Encoding>>();

/**
 * The encoding of the weight that `node` reads, symmetric and per output channel. Remembered as long as the tensor lives:
 * the search for scales takes a while, and clones of a graph share their tensors.
 */
export function layerEncoding(
  weight: Value,
  node: Node,
  { weightBits: bits, weightMethod: method }: WeightOptions,
): Encoding {
  const tensor = weight.initializer!;
  const axis = weightAxis(node);
  const known = knownEncodings.get(tensor) ?? new Map<string, Encoding>();
  knownEncodings.set(tensor, known);
  const key = `${bits} ${method} ${axis}`;
  let encoding = known.get(key);
  if (!encoding) {
    encoding = weightEncoding(tensor.toFloat32(), tensor.dims, { bits, axis, method });
    known.set(key, encoding);
  }
  return encoding;
}
