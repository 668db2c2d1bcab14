import { elementCount, type Graph, Tensor } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { factorDims, slotInputs } from "../factors/slot-layout.ts";

/** Puts a constant in the place of a graph's input. */
export function fixInput(graph: Graph, name: string, tensor: Tensor): void {
  const input = graph.inputs.find((candidate) => candidate.name === name)!;
  graph.replace(input, graph.addInitializer(`${name}.constant`, tensor));
  graph.inputs.splice(graph.inputs.indexOf(input), 1);
}

/** Makes the strengths a constant: `strength` for every rank. */
export function fixStrength(graph: Graph, strengthInput: string, rank: number, strength = 1): void {
  fixInput(graph, strengthInput, Tensor.float32([rank], new Float32Array(rank).fill(strength)));
}

/**
 * Makes adapter inputs constants: the given factors, and zeros for slots without any. Strengths stay, see {@link fixStrength}.
 * @param factors - by graph input, of rank `rank`
 * @param keep - inputs that stay inputs
 * @returns shapes of the inputs that stay, by name
 */
export function fixFactors(
  graph: Graph,
  { slots }: Pick<SlotsFile["components"][string], "slots">,
  rank: number,
  factors: ReadonlyMap<string, Float32Array>,
  keep: ReadonlySet<string> = new Set(),
): Record<string, number[]> {
  const shapes: Record<string, number[]> = {};
  for (const [name, shape] of slotInputs(slots)) {
    const dims = factorDims(shape, rank);
    if (keep.has(name)) {
      shapes[name] = dims;
      continue;
    }
    const values = factors.get(name) ?? new Float32Array(elementCount(dims));
    fixInput(graph, name, Tensor.float32(dims, values));
  }
  return shapes;
}
