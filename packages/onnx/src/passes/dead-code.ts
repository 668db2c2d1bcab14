import type { Graph } from "../ir/graph.ts";
import type { Node } from "../ir/node.ts";
import type { Pass } from "./pass.ts";

/** Removes nodes and constants that no graph output depends on. Graph inputs stay: they are the model's interface. */
export const deadCodeElimination: Pass = {
  name: "dead-code",
  description: "Removes nodes and constants that no output depends on.",
  run: (model) => removeDeadCode(model.graph),
};

function removeDeadCode(graph: Graph): number {
  let removed = 0;
  const kept = new Set(graph.outputs);
  const isDead = (node: Node) => node.outputs.every((value) => !value || (value.uses.length === 0 && !kept.has(value)));
  const queue = [...graph.nodes].filter(isDead);
  for (let node = queue.pop(); node; node = queue.pop()) {
    if (!graph.nodes.has(node)) continue;
    const producers = new Set(node.inputs.map((value) => value?.producer));
    for (const subgraph of node.subgraphs) for (const value of subgraph.captures()) producers.add(value.producer);
    graph.remove(node);
    removed++;
    for (const producer of producers)
      if (producer && graph.nodes.has(producer) && isDead(producer)) queue.push(producer);
  }
  for (const value of graph.initializers) {
    // An input's default stays: without it the input would have to be fed.
    if (value.uses.length > 0 || kept.has(value) || graph.inputs.includes(value)) continue;
    graph.initializers.delete(value);
    removed++;
  }
  for (const node of graph.nodes) for (const subgraph of node.subgraphs) removed += removeDeadCode(subgraph);
  return removed;
}
