import type { Graph } from "../ir/graph.ts";
import type { Model } from "../ir/model.ts";
import type { Node } from "../ir/node.ts";
import { outputDataType } from "../ir/operator-types.ts";
import { Tensor } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";

/** Operators whose outputs' shapes depend on content, or that hide it in subgraphs. */
const contentShapes = new Set(["NonZero", "Compress", "Unique", "NonMaxSuppression", "If", "Loop", "Scan"]);
const sameShape = new Set(["Softmax", "InstanceNormalization", "Erf", "Sigmoid", "Tanh", "Sqrt"]);

/**
 * Replaces a graph's layers by operators whose outputs have the same shapes at a fraction of the work, so that a run that
 * is only about shapes neither multiplies nor reads the weights. Leaves a graph alone where a shape could depend on what
 * the layers compute.
 */
export function replaceLayersByShapes(model: Model): void {
  const { graph } = model;
  const layers = graph.sorted().filter((node) => node.domain === "" && (keepsShape(node) || isLayer(node)));
  if (layers.length === 0 || contentReachesShapes(graph, new Set(layers))) return;
  for (const node of layers) {
    const from = node.output();
    graph.replace(from, standIn(graph, node));
    graph.remove(node);
  }
  for (const value of [...graph.initializers]) {
    if (value.uses.length === 0 && !graph.inputs.includes(value)) graph.initializers.delete(value);
  }
}

/** Operators on one value, products with scalars among them, that a run about shapes can do without. */
function keepsShape(node: Node): boolean {
  if (sameShape.has(node.opType)) return true;
  const scalar = node.inputs[1]?.initializer ?? node.inputs[1]?.producer?.tensor("value");
  return (node.opType === "Mul" || node.opType === "Div") && scalar?.dataType === "float32" && scalar.dims.length === 0;
}

function isLayer(node: Node): boolean {
  const rank = node.inputs[1]?.initializer?.dims.length;
  if (node.opType === "Conv") return rank === 4;
  if (node.opType === "Gemm") return rank === 2 && node.int("transA", 0) === 0;
  return node.opType === "MatMul" && rank === 2;
}

function standIn(graph: Graph, node: Node): Value {
  const x = node.input(0);
  if (keepsShape(node)) return x;
  const { dims } = node.input(1).initializer!;
  const outer = (axis: number, shape: number[], value: Value) => {
    const column = graph.apply("ReduceMax", [value], { attributes: { axes: [axis], keepdims: 1 } });
    const channels = shape.reduce((product, size) => product * size, 1);
    return [column, graph.addInitializer("shape_zeros", Tensor.float32(shape, new Float32Array(channels)))];
  };
  if (node.opType !== "Conv") {
    const columns = node.opType === "Gemm" && node.int("transB", 0) === 1 ? dims[0] : dims[1];
    return graph.apply("Add", outer(-1, [columns], x));
  }
  const [column, zeros] = outer(1, [1, dims[0], 1, 1], x);
  const pool = graph.addNode("MaxPool", [column], { attributes: { kernel_shape: dims.slice(2) } });
  for (const name of ["strides", "pads", "dilations", "auto_pad"]) {
    const attribute = node.attributes.get(name);
    if (attribute) pool.attributes.set(name, attribute);
  }
  return graph.apply("Add", [pool.output(), zeros]);
}

/** Whether what the layers compute is turned into integers or booleans, or into the scales of a Resize, anywhere. */
function contentReachesShapes(graph: Graph, layers: ReadonlySet<Node>): boolean {
  const computed = new Set<Value>();
  for (const node of graph.sorted()) {
    if (contentShapes.has(node.opType) || node.subgraphs.length > 0) return true;
    if (node.opType === "Shape" || node.opType === "Size") continue;
    if (!layers.has(node) && !node.inputs.some((value) => value && computed.has(value))) continue;
    if (node.opType === "Resize" && node.inputs.slice(1).some((value) => value && computed.has(value))) return true;
    for (const [index, value] of node.outputs.entries()) {
      if (!value) continue;
      if (outputDataType(node, index) !== "float32") return true;
      computed.add(value);
    }
  }
  return false;
}
