import { InputError } from "@quad-lora/base";
import { cloneModel, deadCodeElimination, type Model } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { CodeNodes } from "../quantizable/code-nodes.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import type { Encoding } from "../quantization/index.ts";
import type { SimulationOptions } from "../simulate/simulation-graph.ts";
import { quantizeAdapterInputs } from "./adapter-inputs.ts";
import { placeForCpu } from "./cpu-graph.ts";
import { placeForNpu } from "./npu-graph.ts";
import { WeightCodes } from "./weight-codes.ts";

export interface QuantizedGraphOptions {
  /** Unsigned affine per-tensor encodings by point, named as `buildSimulation` names them for the same placement. */
  points: ReadonlyMap<string, Encoding>;
  /** Scales of the adapter factors by slot. */
  slots: ReadonlyMap<string, { a: number; b: number }>;
  adapterBits: 8 | 16;
  weightBits: 4 | 8;
  weightMethod: SimulationOptions["weightMethod"];
  /** Layers whose inputs have 8 bits. */
  narrowLayers: ReadonlySet<string>;
  /** An NPU's graph has static shapes, so its adapters have one rank. */
  target: { kind: "cpu" } | { kind: "npu"; rank: number };
}

/**
 * Turns a prepared exposed graph into the one that ships: integer weights, integer adapter inputs, activations quantized
 * where the target needs it. It computes what `buildSimulation` simulates, up to the rounding of float32 sums; on cpu,
 * products of two activations that are wide stay float, where the simulation rounds their inputs to 16 bits.
 *
 * - npu: standard QuantizeLinear and DequantizeLinear around float operators, the form that NPU toolchains take. Pairs of
 *   16 bits, and 4-bit weights, are of the domain com.microsoft, which has them in every operator set.
 * - cpu: ONNX Runtime's integer kernels by name (MatMulIntegerToFloat, MatMulNBits of com.microsoft), so that what runs does
 *   not depend on which patterns its optimizer recognizes. On x64 processors without VNNI sessions need
 *   `session.x64quantprecision`, which @quad-lora/runtime sets there: their kernels add byte products in 16 bits, which overflow.
 *
 * Weights are computed from `prepared`'s when they are written; `prepared` itself stays as it is.
 * @param prepared - from `prepareGraph`
 * @throws InputError if a point or slot has no encoding
 */
export async function buildQuantizedGraph(
  prepared: Model,
  slots: SlotsFile["components"][string],
  options: QuantizedGraphOptions,
): Promise<Model> {
  const model = cloneModel(prepared);
  const quantizable = findQuantizable(model, slots);
  const { target } = options;
  const tools = {
    codes: new CodeNodes(model.graph),
    weights: new WeightCodes(model.graph, { bits: options.weightBits, method: options.weightMethod }),
    encodingOf: (point: string): Encoding => {
      const encoding = options.points.get(point);
      if (encoding) return encoding;
      throw new InputError({
        what: "the profile has no encoding for this activation",
        file: model.file,
        where: point,
        fix: "The profile belongs to another graph: run quad profile for this one.",
      });
    },
  };
  if (target.kind === "npu") placeForNpu(model, quantizable, tools);
  else placeForCpu(model, quantizable, tools, options.narrowLayers);
  quantizeAdapterInputs(model, slots, tools.codes, {
    scales: options.slots,
    bits: options.adapterBits,
    rank: target.kind === "npu" ? target.rank : null,
  });
  model.opsets.set("com.microsoft", 1);
  await deadCodeElimination.run(model);
  return model;
}

/** What the placements build with. */
export interface PlacementTools {
  codes: CodeNodes;
  weights: WeightCodes;
  /** @throws InputError where the profile lacks the point */
  encodingOf: (point: string) => Encoding;
}
