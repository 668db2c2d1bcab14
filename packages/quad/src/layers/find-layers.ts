import { isFloat, type Model, type Node, type Value } from "@quad-lora/onnx";
import { isRepeatedCall, moduleName, stripWrappers } from "./module-names.ts";

/** A linear or convolution layer with a constant weight: what an adapter can adapt. */
export interface Layer {
  /** Module path in PyTorch's names, `down_blocks.0.attentions.0.proj_in`. */
  name: string;
  kind: "matmul" | "gemm" | "conv";
  inFeatures: number;
  outFeatures: number;
  /** Convolutions: `[kh, kw]`. */
  kernel?: readonly [number, number];
  /** Convolutions: number of groups. */
  groups?: number;
  /** The calls of this layer; more than one where the model runs the same module several times. */
  calls: LayerCall[];
}

/** One place where the graph applies a layer. */
export interface LayerCall {
  node: Node;
  /** The constant weight, before any Transpose or Identity on its way to the node. */
  weight: Value;
  /** What the layer's consumers read: behind the bias where that is an Add of its own. */
  output: Value;
}

/** A node with a constant weight that is not an adaptable layer, and why. */
export interface SkippedNode {
  node: string;
  reason: string;
}

/** Why a layer is skipped that no adapter's key could mean. */
export const unnamed = "neither node nor weight carries a module name";

/** Finds the layers of a graph in execution order. Nodes that look like layers but cannot be adapted are listed with the reason. */
export function findLayers(model: Model): { layers: Layer[]; skipped: SkippedNode[] } {
  const found: { shape: Omit<Layer, "name" | "calls">; call: LayerCall; name: string }[] = [];
  const skipped: SkippedNode[] = [];
  for (const node of model.graph.sorted()) {
    if (node.domain !== "" || !["MatMul", "Gemm", "Conv"].includes(node.opType)) continue;
    const weight = constantBehind(node.inputs[1]);
    if (!weight) continue;
    const shape = layerShape(node, weight);
    const name = moduleName(node, weight.value);
    if (typeof shape === "string") skipped.push({ node: node.name, reason: shape });
    else if (!name) skipped.push({ node: node.name, reason: unnamed });
    else
      found.push({ shape, name, call: { node, weight: weight.value, output: layerOutput(node, shape.outFeatures) } });
  }
  const names = stripWrappers(found.map(({ name }) => name));
  const layers: Layer[] = [];
  const taken = new Set<string>();
  const byWeight = new Map<Value, Layer[]>();
  for (const [index, { shape, call }] of found.entries()) {
    const name = names[index];
    const sharers = byWeight.get(call.weight) ?? [];
    const earlier = sharers.find((layer) => isRepeatedCall(name, layer.name));
    if (earlier) {
      earlier.calls.push(call);
    } else if (taken.has(name)) {
      skipped.push({ node: call.node.name, reason: `another layer with other weights is already named "${name}"` });
    } else {
      const layer = { name, ...shape, calls: [call] };
      layers.push(layer);
      taken.add(name);
      byWeight.set(call.weight, [...sharers, layer]);
    }
  }
  return { layers, skipped };
}

/** The initializer that reaches a node's weight input through Identity and Transpose, and whether it is transposed. */
function constantBehind(value: Value | null | undefined): { value: Value; transposed: boolean } | null {
  let transposed = false;
  for (let current = value; current; current = current.producer?.inputs[0]) {
    if (current.initializer) return { value: current, transposed };
    const operator = current.producer?.opType;
    if (operator === "Transpose" && current.producer?.ints("perm", [1, 0]).join() === "1,0") transposed = !transposed;
    else if (operator !== "Identity") return null;
  }
  return null;
}

function layerShape(node: Node, weight: { value: Value; transposed: boolean }): Omit<Layer, "name" | "calls"> | string {
  const { dims, dataType } = weight.value.initializer!;
  if (!isFloat(dataType)) return `weight of type ${dataType}; adapters change floating-point weights`;
  if (node.opType === "Conv") {
    if (weight.transposed) return "convolution with a transposed weight";
    if (dims.length !== 4) return `convolution over ${dims.length - 2} axes; only two are supported`;
    const groups = node.int("group", 1);
    return {
      kind: "conv",
      inFeatures: dims[1] * groups,
      outFeatures: dims[0],
      kernel: [dims[2], dims[3]],
      groups,
    };
  }
  if (dims.length !== 2) return `weight with ${dims.length} axes; a linear layer has two`;
  if (node.opType === "Gemm" && node.int("transA", 0) === 1) return "Gemm with a transposed input";
  if (node.opType === "Gemm" && node.float("alpha", 1) !== 1) return "Gemm that scales its product";
  const flipped = weight.transposed !== (node.opType === "Gemm" && node.int("transB", 0) === 1);
  const [inFeatures, outFeatures] = flipped ? [dims[1], dims[0]] : dims;
  return { kind: node.opType === "Gemm" ? "gemm" : "matmul", inFeatures, outFeatures };
}

/** The node's output, or the output of the Add that applies the bias when that is all that reads it. */
function layerOutput(node: Node, outFeatures: number): Value {
  const output = node.output();
  const [reader, ...others] = output.uses;
  if (node.opType !== "MatMul" || !reader || others.length > 0 || reader.node.opType !== "Add") return output;
  if (reader.node.graph !== node.graph || node.graph?.outputs.includes(output)) return output;
  const bias = constantBehind(reader.node.inputs[1 - reader.index]);
  const dims = bias?.value.initializer?.dims;
  return dims?.length === 1 && dims[0] === outFeatures ? reader.node.output() : output;
}
