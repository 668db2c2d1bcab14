import { type Graph, Tensor } from "@quad/onnx";
import type { SlotsFile } from "@quad/runtime";

/** Puts a constant in the place of a graph's input. */
export function fixInput(graph: Graph, name: string, tensor: Tensor): void {
  const input = graph.inputs.find((candidate) => candidate.name === name)!;
  graph.replace(input, graph.addInitializer(`${name}.constant`, tensor));
  graph.inputs.splice(graph.inputs.indexOf(input), 1);
}

/**
 * Makes the adapter's inputs constants: strengths of 1, the given factors, and zeros for slots without any.
 * @param factors - by graph input, of rank `rank`
 * @param keep - inputs that stay inputs
 * @returns shapes of the inputs that stay, by name
 */
export function fixFactors(
  graph: Graph,
  { strengthInput, slots }: SlotsFile["components"][string],
  rank: number,
  factors: ReadonlyMap<string, Float32Array>,
  keep: ReadonlySet<string> = new Set(),
): Record<string, number[]> {
  fixInput(graph, strengthInput, Tensor.float32([rank], new Float32Array(rank).fill(1)));
  const shapes: Record<string, number[]> = {};
  for (const slot of slots) {
    for (const [name, shape] of [
      [slot.inputA, slot.shapeA],
      [slot.inputB, slot.shapeB],
    ] as const) {
      const dims = shape.map((dim) => (dim === "rank" ? rank : dim));
      if (keep.has(name)) {
        shapes[name] = dims;
        continue;
      }
      const values = factors.get(name) ?? new Float32Array(dims.reduce((a, b) => a * b, 1));
      fixInput(graph, name, Tensor.float32(dims, values));
    }
  }
  return shapes;
}
