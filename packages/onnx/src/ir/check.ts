import { InputError } from "@quad-lora/base";
import { CycleError, type Graph } from "./graph.ts";
import type { Model } from "./model.ts";
import type { Node } from "./node.ts";
import { tensorByteSize } from "./tensor.ts";
import type { Value } from "./value.ts";

/**
 * Verifies that a graph is legal: every value read is defined in scope, names are unique, constants have the bytes
 * their type and shape need, uses and producers agree with the edges, and nothing runs in a circle.
 * @throws InputError naming the file, the node or value, and the problem
 */
export function checkModel(model: Model): void {
  for (const node of allNodes(model.graph)) {
    if (!model.opsets.has(node.domain)) {
      throw new InputError({
        what: `operator set "${node.domain || "ai.onnx"}" is used but not declared`,
        file: model.file,
        where: node.label,
      });
    }
  }
  checkGraph(model.graph, model.file, new Set(), new Set());
}

function* allNodes(graph: Graph): Generator<Node> {
  for (const node of graph.nodes) {
    yield node;
    for (const subgraph of node.subgraphs) yield* allNodes(subgraph);
  }
}

function checkGraph(graph: Graph, file: string, outer: ReadonlySet<Value>, outerNames: ReadonlySet<string>): void {
  const fail = (what: string, where: string): never => {
    throw new InputError({ what, file, where });
  };
  const visible = new Set(outer);
  const names = new Set(outerNames);
  for (const value of graph.ownValues()) {
    if (value.name === "") fail("a value has no name", `graph "${graph.name}"`);
    if (names.has(value.name)) fail("duplicate name", `value "${value.name}"`);
    names.add(value.name);
    visible.add(value);
  }
  for (const value of graph.initializers) {
    const tensor = value.initializer;
    if (!tensor) {
      fail("listed as initializer but has no content", `value "${value.name}"`);
    } else if (!tensor.strings && tensor.byteLength !== tensorByteSize(tensor.dataType, tensor.dims)) {
      fail(`data length does not fit ${tensor.dataType} [${tensor.dims}]`, `initializer "${value.name}"`);
    }
  }
  for (const node of graph.nodes) {
    if (node.graph !== graph) fail("node belongs to another graph", node.label);
    node.inputs.forEach((value, index) => {
      if (value && !visible.has(value)) fail(`input ${index} reads "${value.name}", which nothing defines`, node.label);
      if (value && !value.isReadBy(node, index)) {
        fail(`input ${index} is not among the uses of "${value.name}"`, node.label);
      }
    });
    for (const value of node.outputs) {
      if (value && value.producer !== node) fail(`output "${value.name}" names another producer`, node.label);
    }
  }
  for (const output of graph.outputs) {
    if (!visible.has(output)) fail("graph output that nothing defines", `value "${output.name}"`);
  }
  try {
    graph.sorted();
  } catch (error) {
    if (error instanceof CycleError) fail("the graph has a cycle", error.node.label);
    throw error;
  }
  for (const node of graph.nodes) for (const subgraph of node.subgraphs) checkGraph(subgraph, file, visible, names);
}
