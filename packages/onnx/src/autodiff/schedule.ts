import type { Graph } from "../ir/graph.ts";
import type { Node } from "../ir/node.ts";
import { tensorByteSize } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";

/** Operators whose output is the input's buffer under another shape. */
const views = new Set(["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"]);

/** A node that makes this many times less than it reads runs as soon as it can: it lets go of what it reads. */
const shrinkFactor = 4;

/**
 * Orders the graph's nodes so that ONNX Runtime keeps few bytes alive. Left to itself it puts off all gradients of
 * parameters until the backward pass is over, which keeps every activation and every gradient until then: its execution
 * order is a depth-first walk from the outputs that takes a node's inputs from the last to the first in file order
 * (`Graph::ReverseDFSFrom`). Run it last: passes that add nodes undo it.
 * @returns the nodes in the order in which they will run
 */
export function scheduleForMemory(graph: Graph): Node[] {
  const edges = findEdges(graph);
  const execution = executionOrder(graph.sorted(), edges);
  const order = fileOrder(execution, edges);
  graph.nodes.clear();
  for (const node of order) graph.nodes.add(node);
  return execution;
}

/**
 * Bytes that a run keeps alive at most when nodes run in this order: constants, inputs and intermediate values from where
 * they are made to their last reader. Values of unknown shape count nothing, nor does what kernels need inside.
 */
export function peakBytes(graph: Graph, execution: readonly Node[]): number {
  const lastReader = new Map<Value, number>();
  const ownerOf = (value: Value): Value => {
    let owner = value;
    while (owner.producer && views.has(owner.producer.opType)) owner = owner.producer.input(0);
    return owner;
  };
  execution.forEach((node, index) => {
    for (const value of node.inputs) if (value) lastReader.set(ownerOf(value), index);
  });
  for (const output of graph.outputs) lastReader.set(ownerOf(output), execution.length);
  const released = new Map<number, number>();
  let alive = 0;
  for (const value of graph.initializers) alive += value.initializer!.byteLength;
  for (const input of graph.inputs) alive += bytes(input);
  let peak = alive;
  execution.forEach((node, index) => {
    if (!views.has(node.opType)) {
      for (const value of node.outputs) {
        if (!value) continue;
        const size = bytes(value);
        alive += size;
        const last = lastReader.get(value) ?? index;
        released.set(last, (released.get(last) ?? 0) + size);
      }
    }
    peak = Math.max(peak, alive);
    alive -= released.get(index) ?? 0;
  });
  return peak;
}

/** The order in which nodes should run: as they were added, but what shrinks data early. */
function executionOrder(sorted: readonly Node[], edges: Edges): Node[] {
  const order: Node[] = [];
  const pending = new Map<Node, number>();
  for (const node of sorted) pending.set(node, edges.inputs.get(node)!.size);
  const run = (first: Node) => {
    const stack = [first];
    for (let node = stack.pop(); node; node = stack.pop()) {
      if (!pending.delete(node)) continue;
      order.push(node);
      for (const reader of edges.readers.get(node)!) {
        const left = pending.get(reader);
        if (left === undefined) continue;
        pending.set(reader, left - 1);
        if (left === 1 && (views.has(reader.opType) || shrinks(reader))) stack.push(reader);
      }
    }
  };
  for (const node of sorted) run(node);
  return order;
}

/**
 * A file order from which the depth-first walk finds the execution order. Filled from the back: among the nodes whose
 * readers are all placed, the one that should run first comes last, so that the walk meets it first.
 */
function fileOrder(execution: readonly Node[], edges: Edges): Node[] {
  const position = new Map(execution.map((node, index) => [node, index]));
  const pending = new Map(execution.map((node) => [node, edges.readers.get(node)!.length]));
  const order: Node[] = [];
  // Descending by position; the next node is at the end.
  const ready = execution.filter((node) => pending.get(node) === 0).reverse();
  for (let node = ready.pop(); node; node = ready.pop()) {
    order.push(node);
    for (const producer of edges.inputs.get(node)!) {
      const left = pending.get(producer)! - 1;
      pending.set(producer, left);
      if (left > 0) continue;
      const place = position.get(producer)!;
      let at = ready.length;
      while (at > 0 && position.get(ready[at - 1])! < place) at--;
      ready.splice(at, 0, producer);
    }
  }
  return order.reverse();
}

/** Edges between the nodes of one graph, those through subgraphs included. */
interface Edges {
  readonly inputs: ReadonlyMap<Node, ReadonlySet<Node>>;
  readonly readers: ReadonlyMap<Node, readonly Node[]>;
}

function findEdges(graph: Graph): Edges {
  const inputs = new Map<Node, Set<Node>>();
  const readers = new Map<Node, Node[]>();
  for (const node of graph.nodes) readers.set(node, []);
  for (const node of graph.nodes) {
    const producers = new Set<Node>();
    const visit = (value: Value | null) => {
      if (value?.producer?.graph === graph) producers.add(value.producer);
    };
    node.inputs.forEach(visit);
    for (const subgraph of node.subgraphs) subgraph.captures().forEach(visit);
    inputs.set(node, producers);
    for (const producer of producers) readers.get(producer)!.push(node);
  }
  return { inputs, readers };
}

function shrinks(node: Node): boolean {
  const largest = Math.max(0, ...node.inputs.map(bytes));
  const made = node.outputs.map(bytes).reduce((sum, size) => sum + size, 0);
  return largest > 0 && made * shrinkFactor <= largest;
}

function bytes(value: Value | null): number {
  const shape = value?.initializer ? null : value?.concreteShape;
  return shape && value?.dataType ? tensorByteSize(value.dataType, shape) : 0;
}
