import { layerInputPoints } from "../../quantizable/points.ts";
import type { Target } from "../target.ts";
import { placeForCpu } from "./cpu-graph.ts";

/**
 * ONNX Runtime's integer kernels by name, so that what runs does not depend on which patterns its optimizer recognizes. Only
 * inputs of layers are rounded; everything else stays float. On x64 processors without VNNI sessions need
 * `session.x64quantprecision`, which @quad-lora/runtime sets there: their kernels add byte products in 16 bits, which overflow.
 */
export const cpu = {
  name: "cpu",
  description: "integer kernels of ONNX Runtime; any rank",
  hasFixedRank: false,
  operators: [
    ...["com.microsoft.MatMulIntegerToFloat", "com.microsoft.MatMulNBits", "com.microsoft.MultiHeadAttention"],
    ...["com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear"],
  ],
  points: ({ layers }) => layerInputPoints(layers),
  place: placeForCpu,
} as const satisfies Target;
