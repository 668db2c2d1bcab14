import { Graph } from "./graph.ts";
import { Model } from "./model.ts";
import { type Attribute, Node } from "./node.ts";
import { Value } from "./value.ts";

/** A deep copy of the structure; tensors are immutable and shared. */
export function cloneModel(model: Model): Model {
  const copy = new Model(cloneGraph(model.graph, new Map()));
  copyHeader(model, copy);
  return copy;
}

/** A deep copy of a graph. `map` receives the copy of every value, and supplies copies of values from around the graph. */
export function cloneGraph(graph: Graph, map: Map<Value, Value>): Graph {
  const copy = new Graph(graph.name);
  copy.extra = graph.extra;
  for (const value of graph.inputs) copy.inputs.push(copyValue(value, map));
  for (const value of graph.initializers) copy.initializers.add(copyValue(value, map));
  for (const value of graph.sparseInitializers) copy.sparseInitializers.add(copyValue(value, map));
  const nodes = graph.sorted();
  for (const node of nodes) copy.insert(cloneNode(node, map));
  for (const value of graph.outputs) copy.outputs.push(map.get(value) ?? value);
  return copy;
}

/**
 * A model of its own that computes `outputs` from constants and from `inputs` (which become its inputs), with copies of
 * the nodes between. Names stay.
 * @param outputs - values of the model's main graph
 */
export function extractModel(model: Model, inputs: readonly Value[], outputs: readonly Value[]): Model {
  const map = new Map<Value, Value>();
  const graph = new Graph("extract");
  const boundary = new Set(inputs);
  for (const value of inputs) graph.inputs.push(copyValue(value, map, true));
  const needed = new Set<Node>();
  const stack: Value[] = [...outputs];
  const visit = (value: Value) => {
    if (boundary.has(value) || map.has(value)) return;
    if (value.producer) stack.push(value);
    else if (value.initializer) graph.initializers.add(copyValue(value, map));
    else if (model.graph.sparseInitializers.has(value)) graph.sparseInitializers.add(copyValue(value, map));
    else if (model.graph.inputs.includes(value)) graph.inputs.push(copyValue(value, map));
  };
  for (const value of outputs) visit(value);
  while (stack.length > 0) {
    const node = stack.pop()!.producer;
    if (!node || needed.has(node)) continue;
    needed.add(node);
    for (const value of node.inputs) if (value) visit(value);
    for (const subgraph of node.subgraphs) for (const value of subgraph.captures()) visit(value);
  }
  for (const node of model.graph.sorted()) if (needed.has(node)) graph.insert(cloneNode(node, map));
  for (const value of outputs) graph.outputs.push(map.get(value)!);
  const extract = new Model(graph);
  copyHeader(model, extract);
  const { functions } = (model.extra ?? {}) as { functions?: unknown };
  extract.extra = functions ? { functions } : null;
  return extract;
}

function copyHeader(from: Model, to: Model): void {
  to.irVersion = from.irVersion;
  to.opsets.clear();
  for (const [domain, version] of from.opsets) to.opsets.set(domain, version);
  to.producerName = from.producerName;
  to.producerVersion = from.producerVersion;
  for (const [key, value] of from.metadata) to.metadata.set(key, value);
  to.file = from.file;
  to.extra = from.extra;
}

function copyValue(value: Value, map: Map<Value, Value>, asInput = false): Value {
  const known = map.get(value);
  if (known) return known;
  const copy = new Value(value.name, value.type);
  if (!asInput) copy.initializer = value.initializer;
  copy.extra = value.extra;
  map.set(value, copy);
  return copy;
}

/** A copy of a node that reads the mapped values and defines fresh copies of its outputs in `map`. */
function cloneNode(node: Node, map: Map<Value, Value>): Node {
  const copy = new Node(
    node.opType,
    node.inputs.map((value) => value && (map.get(value) ?? value)),
    { name: node.name, domain: node.domain },
  );
  copy.extra = node.extra;
  for (const [name, attribute] of node.attributes) copy.attributes.set(name, cloneAttribute(attribute, map));
  for (const output of node.outputs) copy.addOutput(output && copyValue(output, map));
  return copy;
}

function cloneAttribute(attribute: Attribute, map: Map<Value, Value>): Attribute {
  if (attribute.kind === "graph") return { kind: "graph", value: cloneGraph(attribute.value, new Map(map)) };
  if (attribute.kind === "graphs") {
    return { kind: "graphs", value: attribute.value.map((graph) => cloneGraph(graph, new Map(map))) };
  }
  return attribute;
}
