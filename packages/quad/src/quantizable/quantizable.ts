import { type Model, type Node, outputDataType, tensorType, type Use, type Value } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { findLayers } from "../layers/find-layers.ts";
import { findGuardedDivisors, findMasked, findPhases } from "./float-values.ts";
import { movesData } from "./movements.ts";

/** A matrix product or convolution: the unit that gets a width for its input activations. */
export interface QuantizableLayer {
  /** Module path for layers with weights, node path for products of two activations. */
  name: string;
  kind: "weighted" | "product";
  nodes: Node[];
  /** Node inputs that carry activations. */
  activations: Use[];
  /** The constant weight; null for products. */
  weight: Value | null;
  /** Multiply-accumulates are proportional to it: elements of the weight, for cost estimates. */
  parameters: number;
}

/** What quantization can act on in a prepared exposed graph. */
export interface Quantizable {
  layers: QuantizableLayer[];
  /**
   * Every float value that a node computes or the graph takes in, adapter factors and strengths excepted. Outputs of
   * operators that only move data are left out: they have the encoding of what they move. So are phases, masks and what they
   * make of scores, and divisors that are kept from zero (`float-values.ts`): these stay in float everywhere.
   */
  activations: Value[];
  /**
   * Arguments of sines and cosines (the time step's embedding) and what they are computed from. They stay in float: rounding
   * turns an angle by up to half a step, and with a time step of up to 1000 on an 8-bit grid that is two radians. These
   * two values alone make a fully 8-bit model collapse; see docs/method.md.
   */
  phases: Value[];
  /** Values inside adapter branches whose size is the rank (empty when no adapter is bound). */
  rankSized: Set<Value>;
  /** Nodes of the adapter branches. */
  branchNodes: Set<Node>;
}

/** Finds layers and activations of a prepared graph, in execution order. */
export function findQuantizable(model: Model, slots: SlotsFile["components"][string]): Quantizable {
  const { graph } = model;
  inferDataTypes(model);
  const adapterInputs = new Set<string>([slots.strengthInput]);
  for (const slot of slots.slots) adapterInputs.add(slot.inputA).add(slot.inputB);
  const { branchNodes, rankSized, parameters } = findBranches(model, adapterInputs);

  const layers: QuantizableLayer[] = findLayers(model).layers.map((layer) => ({
    name: layer.name,
    kind: "weighted",
    nodes: layer.calls.map(({ node }) => node),
    activations: layer.calls.map(({ node }) => ({ node, index: 0 })),
    weight: layer.calls[0].weight,
    parameters: layer.calls[0].weight.initializer!.elementCount,
  }));
  const weighted = new Set(layers.flatMap(({ nodes }) => nodes));
  const order = graph.sorted();
  for (const node of order) {
    if (node.domain !== "" || node.opType !== "MatMul" || weighted.has(node) || branchNodes.has(node)) continue;
    if (node.inputs.some((value) => !value || value.initializer || parameters.has(value))) continue;
    layers.push({
      name: node.name.replace(/^\//, "").replaceAll("/", "."),
      kind: "product",
      nodes: [node],
      activations: [
        { node, index: 0 },
        { node, index: 1 },
      ],
      weight: null,
      parameters: 0,
    });
  }
  const position = new Map(order.map((node, index) => [node, index]));
  layers.sort((a, b) => position.get(a.nodes[0])! - position.get(b.nodes[0])!);

  const floats = graph.inputs.filter((value) => value.dataType === "float32" && !adapterInputs.has(value.name));
  for (const node of order) {
    if (movesData(node)) continue;
    for (const value of node.outputs) {
      if (value && value.dataType === "float32" && !parameters.has(value)) floats.push(value);
    }
  }
  const layerNodes = new Set(layers.flatMap(({ nodes }) => nodes));
  const turning = findPhases(order, layerNodes);
  const exempt = new Set([...turning, ...findMasked(model, order), ...findGuardedDivisors(order)]);
  const activations = floats.filter((value) => !exempt.has(value));
  const phases = floats.filter((value) => turning.has(value));
  return { layers, activations, phases, rankSized, branchNodes };
}

/** Nodes between the adapter inputs and the Add that joins a branch to its layer. */
export function findBranches(model: Model, adapterInputs: ReadonlySet<string>) {
  const branchNodes = new Set<Node>();
  const rankSized = new Set<Value>();
  /** Values computed from adapter inputs alone, such as the reshaped strength: no activations. By the input's name. */
  const parameters = new Map<Value, string>();
  for (const value of model.graph.inputs) if (adapterInputs.has(value.name)) parameters.set(value, value.name);
  for (const node of model.graph.sorted()) {
    const source = node.inputs.map((value) => value && parameters.get(value)).find(Boolean);
    if (!source) continue;
    if (node.inputs.every((value) => !value || value.initializer !== null || parameters.has(value))) {
      for (const value of node.outputs) if (value) parameters.set(value, source);
      continue;
    }
    branchNodes.add(node);
    // The up projection's result is as large as the layer's output; what comes before it has the rank as an axis.
    if (!source.endsWith(".lora_B")) rankSized.add(node.output());
  }
  return { branchNodes, rankSized, parameters };
}

function inferDataTypes(model: Model): void {
  for (const node of model.graph.sorted()) {
    node.outputs.forEach((value, index) => {
      if (!value || value.dataType) return;
      const dataType = outputDataType(node, index);
      if (dataType) value.type = tensorType(dataType, null);
    });
  }
}
