import type { Model, Value } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import type { ModelEncodings } from "../encodings-files/index.ts";
import { factorEncoding } from "../factors/encode-factors.ts";
import { layerInputPoint } from "../quantizable/points.ts";
import { findQuantizable, type QuantizableLayer } from "../quantizable/quantizable.ts";
import { layerEncoding } from "../quantizable/weights.ts";
import type { Encoding } from "../quantization/index.ts";
import { type Profile, pointEncoding } from "../records/profile.ts";

/**
 * A profile in the terms of toolchains that quantize by themselves: one encoding per tensor of the prepared graph.
 * A tensor has the width of the layers that read it where all of them agree and nothing else reads it, else its own.
 */
export function aimetEncodings(
  prepared: Model,
  slots: SlotsFile["components"][string],
  { points, policy, slots: scales }: Profile,
): ModelEncodings {
  const { layers, activations: values } = findQuantizable(prepared, slots);
  const activations = new Map<string, Encoding>();
  for (const { name } of values) if (points[name]) activations.set(name, pointEncoding(points[name]));
  for (const [value, { names, isOnlyReader }] of layerInputs(layers)) {
    const encodings = names.map((name) => points[name]).filter((point) => point !== undefined);
    if (encodings.length === 0) continue;
    const widest = encodings.reduce((a, b) => (b.bits > a.bits ? b : a));
    if (isOnlyReader || !activations.has(value.name)) activations.set(value.name, pointEncoding(widest));
  }
  for (const { name, inputA, inputB } of slots.slots) {
    if (!scales[name]) continue;
    activations.set(inputA, factorEncoding(scales[name].a, policy.adapterBits));
    activations.set(inputB, factorEncoding(scales[name].b, policy.adapterBits));
  }
  const parameters = new Map<string, Encoding>();
  for (const { weight, nodes } of layers) {
    if (!weight || parameters.has(weight.name)) continue;
    parameters.set(weight.name, layerEncoding(weight, nodes[0], policy));
  }
  return { activations, parameters };
}

/** The tensor of the prepared graph that each point of a profile rounds. */
export function tensorsOfPoints(prepared: Model, slots: SlotsFile["components"][string]): Map<string, string> {
  const { layers, activations } = findQuantizable(prepared, slots);
  const tensors = new Map(activations.map(({ name }) => [name, name]));
  for (const [value, { names }] of layerInputs(layers)) for (const name of names) tensors.set(name, value.name);
  return tensors;
}

/** The values that layers read, with the points on these edges, and whether layers are all that reads them. */
function layerInputs(layers: readonly QuantizableLayer[]): Map<Value, { names: string[]; isOnlyReader: boolean }> {
  const inputs = new Map<Value, { names: string[]; isOnlyReader: boolean }>();
  for (const layer of layers) {
    for (const [position, { node, index }] of layer.activations.entries()) {
      const value = node.input(index);
      const known = inputs.get(value) ?? { names: [], isOnlyReader: false };
      known.names.push(layerInputPoint(layer.name, position));
      known.isOnlyReader = known.names.length === value.uses.length;
      inputs.set(value, known);
    }
  }
  return inputs;
}
