import { elementCount, isFloat, type Model, type Node, tensorType, type Value } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import type { Layer } from "../layers/find-layers.ts";
import { buildDenoiserGraph, checkDenoiser, type DenoiserGraph, type DenoiserGraphOptions } from "./denoiser-graph.ts";

/** A learned constant of a graph. */
export interface Weight {
  value: Value;
  /** `weight` multiplies activations with sums over `fanIn` values; `scale` and `bias` work value by value. */
  role: "weight" | "scale" | "bias";
  fanIn: number;
}

/** Inputs that hold learned constants, by operator. */
const sums = new Map<string, { weight: number[]; bias: number[] }>([
  ["Conv", { weight: [1], bias: [2] }],
  ["ConvTranspose", { weight: [1], bias: [2] }],
  ["Gemm", { weight: [1], bias: [2] }],
  ["MatMul", { weight: [0, 1], bias: [] }],
]);
const normalizations = new Set([
  ...["InstanceNormalization", "LayerNormalization", "GroupNormalization", "GroupNorm", "RMSNormalization"],
  ...["SimplifiedLayerNormalization"],
]);
const movements = new Set(["Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"]);

/**
 * The learned constants of a network, in execution order: weights and biases of its layers, and what scales or shifts values
 * behind a layer (the affine part of normalisations, decomposed or not). Constants before the first layer, such as the
 * frequencies of a time embedding, and single numbers are not learned.
 */
export function findWeights(model: Model): Weight[] {
  const found = new Map<Value, Weight>();
  const behindLayer = new Set<Value>();
  const add = (node: Node, index: number, role: Weight["role"]) => {
    const value = learnedBehind(node.inputs[index]);
    if (!value || found.has(value)) return;
    found.set(value, { value, role, fanIn: role === "weight" ? fanInOf(node, index, value) : 1 });
  };
  for (const node of model.graph.sorted()) {
    const places = node.domain === "" ? sums.get(node.opType) : undefined;
    const isBehind = node.inputs.some((value) => value && behindLayer.has(value));
    if (places) {
      for (const index of places.weight) add(node, index, "weight");
      for (const index of places.bias) add(node, index, "bias");
    } else if (isBehind && normalizations.has(node.opType)) {
      add(node, 1, "scale");
      add(node, 2, "bias");
    } else if (isBehind && node.domain === "" && (node.opType === "Mul" || node.opType === "Add")) {
      for (const index of [0, 1]) add(node, index, node.opType === "Mul" ? "scale" : "bias");
    }
    if (isBehind || places) for (const value of node.outputs) if (value) behindLayer.add(value);
  }
  return [...found.values()];
}

/** The weights and biases of some layers among a network's learned constants. */
export function weightsOf(weights: readonly Weight[], layers: readonly Layer[]): Weight[] {
  const wanted = new Set<Value | null | undefined>();
  for (const { calls } of layers) {
    for (const { node, weight, output } of calls) {
      wanted.add(weight);
      for (const value of node.inputs.slice(2)) wanted.add(learnedBehind(value));
      if (output.producer && output.producer !== node) {
        for (const value of output.producer.inputs) wanted.add(learnedBehind(value));
      }
    }
  }
  return weights.filter(({ value }) => wanted.has(value));
}

export interface WeightsGraph extends DenoiserGraph {
  /** Start values of the packed parameters: what the model holds. */
  initial: Float32Array;
}

/**
 * A UNet's training graph for some of its weights, which become pieces of one input. Edits `model` in place.
 * @throws InputError for graphs of other inputs or types than a text-conditioned UNet's
 */
export async function buildWeightsGraph(
  model: Model,
  weights: readonly Weight[],
  options: DenoiserGraphOptions,
): Promise<WeightsGraph> {
  checkDenoiser(model);
  const { graph } = model;
  const tensors = weights.map(({ value }) => value.initializer!);
  for (const { value } of weights) {
    value.type = tensorType("float32", value.initializer!.dims);
    value.initializer = null;
    graph.initializers.delete(value);
    graph.inputs.push(value);
  }
  const inputs = weights.map(({ value }) => value);
  const built = await buildDenoiserGraph(model, inputs, options);
  const initial = new Float32Array(built.training.size);
  for (const [index, { offset }] of built.training.layout.entries()) initial.set(tensors[index].toFloat32(), offset);
  return { ...built, initial };
}

/** Start values for training from scratch: weights uniform in +-1 / sqrt(fan in), scales one, biases zero. */
export function freshWeights(weights: readonly Weight[], seed: number): Float32Array {
  const random = new SeededRandom(seed);
  const parts = weights.map(({ value, role, fanIn }) => {
    const bound = 1 / Math.sqrt(fanIn);
    return Float32Array.from({ length: value.initializer!.elementCount }, () =>
      role === "weight" ? (2 * random.uniform() - 1) * bound : role === "scale" ? 1 : 0,
    );
  });
  const values = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let offset = 0;
  for (const part of parts) {
    values.set(part, offset);
    offset += part.length;
  }
  return values;
}

function learnedBehind(value: Value | null | undefined): Value | null {
  for (let current = value; current; current = current.producer?.inputs[0]) {
    if (current.initializer) {
      const { dataType, elementCount } = current.initializer;
      return isFloat(dataType) && elementCount > 1 ? current : null;
    }
    if (!current.producer || !movements.has(current.producer.opType)) return null;
  }
  return null;
}

/** Values that one value of the result is a sum over. */
function fanInOf(node: Node, index: number, { initializer }: Value): number {
  const { dims } = initializer!;
  if (node.opType === "Conv") return elementCount(dims.slice(1));
  if (node.opType === "ConvTranspose") return elementCount(dims) / dims[1];
  let isTransposed = node.opType === "Gemm" && node.int("transB", 0) === 1;
  for (let value = node.inputs[index]; value?.producer; value = value.producer.inputs[0]) {
    if (value.producer.opType === "Transpose") isTransposed = !isTransposed;
  }
  return dims[dims.length - ((index === 1) === isTransposed ? 1 : 2)] ?? dims[0];
}
