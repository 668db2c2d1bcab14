import { InputError } from "@quad-lora/base";
import { type Model, tensorType, type Value } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { factorEncoding } from "../factors/encode-factors.ts";
import { type FactorShape, factorDims } from "../factors/slot-layout.ts";
import type { CodeNodes } from "../quantizable/code-nodes.ts";

export interface AdapterInputOptions {
  /** Scales of the factors by slot. */
  scales: ReadonlyMap<string, { a: number; b: number }>;
  bits: 8 | 16;
  /** The rank that all adapters are given with; null leaves it open. */
  rank: number | null;
}

/**
 * Makes the adapter inputs integers: codes on the slots' symmetric grids, multiplied by the scales inside the graph. Names
 * and layouts stay. Edits `model` in place.
 * @throws InputError if a slot has no scales
 */
export function quantizeAdapterInputs(
  model: Model,
  slots: SlotsFile["components"][string],
  codes: CodeNodes,
  { scales, bits, rank }: AdapterInputOptions,
): void {
  const inputs = new Map(model.graph.inputs.map((input) => [input.name, input]));
  if (rank !== null) dropSpareRanks(model);
  const concrete = (shape: FactorShape) => (rank === null ? shape : factorDims(shape, rank));
  for (const slot of slots.slots) {
    const scale = scales.get(slot.name);
    if (!scale) {
      throw new InputError({
        what: "the profile has no scales for this layer's adapter",
        file: model.file,
        where: slot.name,
        fix: "The profile belongs to another graph: run quad profile for this one.",
      });
    }
    for (const [name, shape, step] of [
      [slot.inputA, slot.shapeA, scale.a],
      [slot.inputB, slot.shapeB, scale.b],
    ] as const) {
      const input = inputs.get(name)!;
      const readers = input.uses;
      input.type = tensorType(bits === 8 ? "int8" : "int16", concrete(shape));
      const values = codes.dequantize(input, factorEncoding(step, bits), name);
      for (const { node, index } of readers) node.setInput(index, values);
    }
  }
  // A graph with merged adapters has no such input.
  const strength = inputs.get(slots.strengthInput);
  if (strength) strength.type = tensorType(strength.dataType!, concrete(["rank"]));
}

/** A rank of zeros behind a convolution's own is there for rank 0 alone: a graph of fixed rank does without. */
function dropSpareRanks({ graph }: Model): void {
  const isSpare = (value: Value | null) => value?.initializer && value.name.startsWith("quad.zeros.");
  for (const node of [...graph.nodes]) {
    if (node.opType !== "Concat" || node.inputs.length !== 2 || !isSpare(node.inputs[1])) continue;
    graph.replace(node.output(), node.input(0));
    graph.remove(node);
  }
}
