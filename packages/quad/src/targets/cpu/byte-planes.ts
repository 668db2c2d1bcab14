import { type Graph, Tensor, tensorType, type Value } from "@quad-lora/onnx";
import type { CodeNodes } from "../../quantizable/code-nodes.ts";
import type { Encoding } from "../../quantization/index.ts";

/**
 * Integer kernels take 8-bit activations. A 16-bit code is two of them, `256 h + l`, and a layer is linear: both bytes go
 * through it as rows of one product, and
 *
 *   sum_k (c_k - z) w_k  =  256 sum_k (h_k - zh) w_k  +  sum_k (l_k - zl) w_k,      z = 256 zh + zl
 *
 * joins the results. Nothing is rounded beyond the 16-bit code.
 */
export interface PlaneEncodings {
  high: Encoding;
  low: Encoding;
}

/** The grids of a 16-bit code's bytes. */
export function planeEncodings({ scale: [step], zeroPoint: [zero] }: Encoding): PlaneEncodings {
  const grid = { bits: 8, signed: false, symmetric: false } as const;
  return {
    high: { ...grid, scale: Float32Array.of(256 * step), zeroPoint: Int32Array.of(zero >> 8) },
    low: { ...grid, scale: Float32Array.of(step), zeroPoint: Int32Array.of(zero & 255) },
  };
}

/** float32 `[batch, ...]` -> uint8 `[2 * batch, ...]`: the high bytes of a 16-bit encoding, then the low ones. */
export function splitIntoPlanes(graph: Graph, nodes: CodeNodes, value: Value, encoding: Encoding, name: string): Value {
  const { high, low } = planeEncodings(encoding);
  const [step] = encoding.scale;
  const dims = value.concreteShape!;
  const apply = (operator: string, inputs: Value[]): Value => {
    const result = graph.apply(operator, inputs, { name: `${name}/${operator}` });
    result.type = tensorType("float32", dims);
    return result;
  };
  // floor(c / 256) = round((c - 127.5) / 256) with c = x / step + z: QuantizeLinear rounds, so x is shifted.
  const shift = graph.addInitializer(`${name}/shift`, Tensor.scalar(step * (low.zeroPoint[0] - 127.5)));
  const highCodes = nodes.quantize(apply("Add", [value, shift]), high, `${name}/high`);
  const rest = apply("Sub", [value, nodes.dequantize(highCodes, high, `${name}/high`)]);
  const lowCodes = nodes.quantize(rest, low, `${name}/low`);
  const planes = graph.apply("Concat", [highCodes, lowCodes], { name: `${name}/Concat`, attributes: { axis: 0 } });
  planes.type = tensorType("uint8", [2 * dims[0], ...dims.slice(1)]);
  return planes;
}

/**
 * What makes the planes' product right: both are taken with the high bytes' zero point, and both get the bias, so that the
 * joined product has it 257 times.
 * @param columnSums - sums over the weight's rows, in real units
 */
export function planeBias(encoding: Encoding, bias: Float32Array | null, columnSums: Float32Array): Float32Array {
  const { high, low } = planeEncodings(encoding);
  const excess = encoding.scale[0] * (low.zeroPoint[0] - high.zeroPoint[0]);
  return columnSums.map((sum, column) => ((bias?.[column] ?? 0) - excess * sum) / 257);
}

/** Products of both planes `[2 * batch, ...]` -> the layer's result `[dims]`, float32. */
export function joinPlanes(graph: Graph, product: Value, dims: readonly number[], name: string): Value {
  const reshape = (value: Value, shape: readonly number[]): Value => {
    const target = graph.addInitializer(`${name}/shape`, Tensor.int64([shape.length], shape));
    const result = graph.apply("Reshape", [value, target], { name: `${name}/Reshape` });
    result.type = tensorType("float32", shape);
    return result;
  };
  const count = dims.reduce((total, size) => total * size, 1);
  const weights = graph.addInitializer(`${name}/planes`, Tensor.float32([1, 2], [256, 1]));
  // One pass over the memory, unlike a split, a multiplication and an addition.
  const joined = graph.apply("MatMul", [weights, reshape(product, [2, count])], { name: `${name}/MatMul` });
  joined.type = tensorType("float32", [1, count]);
  return reshape(joined, dims);
}
