import type { Graph } from "../ir/graph.ts";
import type { Node } from "../ir/node.ts";
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
  run: (model) => removeIdentities(model.graph),
};

function removeIdentities(graph: Graph): number {
  let removed = 0;
  for (const node of [...graph.nodes]) {
    for (const subgraph of node.subgraphs) removed += removeIdentities(subgraph);
    const through = passedThrough(node);
    if (!through) continue;
    const output = node.output();
    // The interface keeps its names: an output that is an input or a constant needs its Identity.
    if (graph.outputs.includes(output) && (through.producer?.graph !== graph || graph.outputs.includes(through))) continue;
    graph.replace(output, through);
    graph.remove(node);
    removed++;
  }
  return removed;
}

function passedThrough(node: Node): Value | null {
  if (node.domain !== "" || node.outputs.slice(1).some((value) => value && value.uses.length > 0)) return null;
  switch (node.opType) {
    case "Identity":
    case "Dropout":
      return node.input(0);
    case "Cast":
      return node.input(0).dataType !== null && node.input(0).dataType === node.output().dataType ? node.input(0) : null;
    case "Transpose":
      return node.ints("perm", []).length > 0 && node.ints("perm").every((axis, index) => axis === index)
        ? node.input(0)
        : null;
    case "Add":
      return neutral(node, 0, 1, 0) ?? neutral(node, 1, 0, 0);
    case "Mul":
      return neutral(node, 0, 1, 1) ?? neutral(node, 1, 0, 1);
    case "Sub":
      return neutral(node, 0, 1, 0);
    case "Div":
    case "Pow":
      return neutral(node, 0, 1, 1);
    default:
      return null;
  }
}

/** The input at `operand` if the input at `constant` is all `element` and does not enlarge the operand. */
function neutral(node: Node, operand: number, constant: number, element: number): Value | null {
  const value = node.input(operand);
  const other = node.input(constant);
  const tensor = other.initializer;
  if (!tensor || tensor.strings || isInput(other) || tensor.byteLength > 1 << 24) return null;
  const isScalar = tensor.elementCount === 1 && tensor.dims.length === 0;
  if (!isScalar && !broadcastsInto(tensor.dims, value.concreteShape)) return null;
  return tensor.toNumbers().every((number) => number === element) ? value : null;
}

function isInput(value: Value): boolean {
  return value.consumers.some((node) => node.graph?.inputs.includes(value));
}

function broadcastsInto(dims: readonly number[], target: readonly number[] | null): boolean {
  if (!target || dims.length > target.length) return false;
  return dims.every((dim, index) => dim === 1 || dim === target[index + target.length - dims.length]);
}
