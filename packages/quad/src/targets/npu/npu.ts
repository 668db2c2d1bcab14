import { allPoints } from "../../quantizable/points.ts";
import type { Target } from "../target.ts";
import { placeForNpu } from "./npu-graph.ts";

/**
 * Standard QuantizeLinear and DequantizeLinear around float operators, the form that NPU toolchains take; every activation is
 * rounded. Pairs of 16 bits, and 4-bit weights, are of the domain com.microsoft, which has them in every operator set.
 */
export const npu = {
  name: "npu",
  description: "pairs of QuantizeLinear and DequantizeLinear everywhere, static shapes, one rank",
  hasFixedRank: true,
  operators: ["com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear"],
  points: allPoints,
  place: placeForNpu,
} as const satisfies Target;
