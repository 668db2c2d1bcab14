import type { Graph, Value } from "@quad-lora/onnx";

/** Makes every reader of `from` read `to`, which takes over its name: values are called as in the graph that was calibrated. */
export function replaceValue(graph: Graph, from: Value, to: Value): void {
  to.type = from.type;
  graph.replace(from, to);
  // A graph output's name has gone over already.
  if (graph.outputs.includes(to)) return;
  const { name } = from;
  from.name = graph.claimName(`${name}_replaced`);
  to.name = name;
}
