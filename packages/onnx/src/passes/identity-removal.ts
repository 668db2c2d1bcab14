import type { Graph } from "../ir/graph.ts";
import type { Node } from "../ir/node.ts";
import type { Tensor } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";
import type { Pass } from "./pass.ts";

/**
 * Removes operators that pass an input through: Identity, inference-time Dropout, a Cast to the type at hand, a Transpose
 * that moves nothing, and +0, -0, x1, /1 and ^1 with constants. Where the constant could still broadcast the other
 * operand to a larger shape, the operand's concrete shape must be known.
 */
export const identityRemoval: Pass = {
  name: "identity-removal",
  description: "Removes operators that return an input unchanged.",
  run: (model) => removeIdentities(model.graph, new Set(model.graph.inputs)),
};

function removeIdentities(graph: Graph, inputs: ReadonlySet<Value>): number {
  let removed = 0;
  for (const node of [...graph.nodes]) {
    for (const subgraph of node.subgraphs) {
      removed += removeIdentities(subgraph, new Set([...inputs, ...subgraph.inputs]));
    }
    if (node.outputs.slice(1).some((value) => value && (value.uses.length > 0 || graph.outputs.includes(value))))
      continue;
    const through = passedThrough(node, inputs);
    if (!through) continue;
    const output = node.output();
    // The interface keeps its names: an output that is an input or a constant needs its Identity.
    if (graph.outputs.includes(output) && (through.producer?.graph !== graph || graph.outputs.includes(through)))
      continue;
    graph.replace(output, through);
    graph.remove(node);
    removed++;
  }
  return removed;
}

function passedThrough(node: Node, inputs: ReadonlySet<Value>): Value | null {
  if (node.domain !== "") return null;
  const neutral = (operand: number, constant: number, element: number) =>
    !inputs.has(node.input(constant)) && isNeutral(node.input(operand), node.input(constant), element, inputs)
      ? node.input(operand)
      : null;
  switch (node.opType) {
    case "Identity":
      return node.input(0);
    case "Dropout":
      return node.inputs[2] ? null : node.input(0); // the third input can turn training mode on
    case "Cast":
      return node.input(0).dataType !== null && node.input(0).dataType === node.output().dataType
        ? node.input(0)
        : null;
    case "Transpose":
      return node.ints("perm", []).length > 0 && node.ints("perm").every((axis, index) => axis === index)
        ? node.input(0)
        : null;
    case "Add":
      return neutral(0, 1, 0) ?? neutral(1, 0, 0);
    case "Mul":
      return neutral(0, 1, 1) ?? neutral(1, 0, 1);
    case "Sub":
      return neutral(0, 1, 0);
    case "Div":
    case "Pow":
      return neutral(0, 1, 1);
    default:
      return null;
  }
}

/** Whether a constant is all `element` and does not enlarge the operand by broadcasting. */
function isNeutral(operand: Value, constant: Value, element: number, inputs: ReadonlySet<Value>): boolean {
  if (uniformValue(constant, inputs) !== element) return false;
  const dims = constant.concreteShape;
  return dims !== null && (dims.length === 0 || broadcastsInto(dims, operand.concreteShape));
}

/**
 * The number that every element of a constant is, or null. Constants that are still computed (exporters multiply an
 * attention mask of ConstantOfShape, as large as the scores, by 0) are seen through, so that nothing has to hold them.
 */
function uniformValue(value: Value, inputs: ReadonlySet<Value>): number | null {
  if (inputs.has(value)) return null;
  if (value.initializer) return uniformContent(value.initializer);
  const node = value.producer;
  if (node?.domain !== "") return null;
  if (node.opType === "Constant") return uniformContent(node.tensor("value"));
  if (node.opType === "ConstantOfShape") return node.attributes.size === 0 ? 0 : uniformContent(node.tensor("value"));
  if (node.opType !== "Mul") return null;
  const left = uniformValue(node.input(0), inputs);
  const right = left === null ? null : uniformValue(node.input(1), inputs);
  return left === null || right === null ? null : left * right;
}

function uniformContent(tensor: Tensor | null): number | null {
  if (!tensor || tensor.strings || tensor.byteLength > 1 << 24 || tensor.elementCount === 0) return null;
  const numbers = tensor.toNumbers();
  return numbers.every((number) => number === numbers[0]) ? numbers[0] : null;
}

function broadcastsInto(dims: readonly number[], target: readonly number[] | null): boolean {
  if (!target || dims.length > target.length) return false;
  return dims.every((dim, index) => dim === 1 || dim === target[index + target.length - dims.length]);
}
