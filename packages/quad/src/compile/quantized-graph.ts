import { InputError } from "@quad-lora/base";
import { cloneModel, deadCodeElimination, type Model } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { CodeNodes } from "../quantizable/code-nodes.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import { WeightCodes } from "../quantizable/weight-codes.ts";
import type { WeightOptions } from "../quantizable/weights.ts";
import type { Encoding } from "../quantization/index.ts";
import type { Target } from "../targets/target.ts";
import { quantizeAdapterInputs } from "./adapter-inputs.ts";

export interface QuantizedGraphOptions {
  /** Unsigned affine per-tensor encodings of the target's points, by name. */
  points: ReadonlyMap<string, Encoding>;
  /** Scales of the adapter factors by slot. */
  slots: ReadonlyMap<string, { a: number; b: number }>;
  adapterBits: 8 | 16;
  weightBits: 4 | 8;
  weightMethod: WeightOptions["weightMethod"];
  /** Layers whose inputs have 8 bits. */
  narrowLayers: ReadonlySet<string>;
  target: Target;
  /** The rank that the graph takes, where the target's is fixed; null leaves it open. */
  rank: number | null;
}

/**
 * Turns a prepared exposed graph into the one that ships: integer weights, integer adapter inputs, activations quantized
 * where the target needs it. It computes what `buildSimulation` simulates, up to the rounding of float32 sums, and up to
 * products of two activations that a target leaves in float, where the simulation rounds their inputs to 16 bits.
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
  const codes = new CodeNodes(model.graph);
  options.target.place(model, quantizable, {
    codes,
    narrowLayers: options.narrowLayers,
    weights: new WeightCodes(model.graph, { bits: options.weightBits, method: options.weightMethod }),
    encodingOf: (point) => {
      const encoding = options.points.get(point);
      if (encoding) return encoding;
      throw new InputError({
        what: "the profile has no encoding for this activation",
        file: model.file,
        where: point,
        fix: "The profile belongs to another graph: run quad profile for this one.",
      });
    },
  });
  quantizeAdapterInputs(model, slots, codes, {
    scales: options.slots,
    bits: options.adapterBits,
    rank: options.rank,
  });
  model.opsets.set("com.microsoft", 1);
  await deadCodeElimination.run(model);
  return model;
}
