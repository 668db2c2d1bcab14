import { type Model, Tensor, tensorType } from "@quad/onnx";
import type { SlotsFile } from "@quad/runtime";
import { placeEncodings } from "../distill/student-graph.ts";
import type { Layer } from "../layers/find-layers.ts";
import type { Profile } from "../profile/profile.ts";
import { prepareGraph } from "../simulate/prepare-graph.ts";
import { buildSimulation } from "../simulate/simulation-graph.ts";
import { type AdapterGraph, type AdapterGraphOptions, constantStrength, requireSlots } from "./adapter-graph.ts";
import { batchNames, buildDenoiserGraph, perRowTimesteps } from "./denoiser-graph.ts";

/**
 * As `buildAdapterGraph`, on the quantized base: the exposed graph as a compiled one computes it, with the profile's encodings.
 * Gradients pass rounding unchanged and stop where a range clips. Factors stay float; adding the adapter to a bundle rounds
 * them. Slots of other layers are empty.
 * @param exposed - a graph with adapter inputs; edited
 * @throws InputError if the profile lacks an encoding, or no slot is among the layers
 */
export async function buildQuantizedAdapterGraph(
  exposed: Model,
  component: SlotsFile["components"][string],
  profile: Profile,
  layers: readonly Layer[],
  options: AdapterGraphOptions,
): Promise<AdapterGraph> {
  const { rank, scale, batch, height, width, tokens } = options;
  const slots = requireSlots(component.slots, layers, exposed);
  const prepared = await prepareGraph(exposed, component, { batch, height, width, tokens }, rank);
  // Before quantization points come between the time step and its expansion.
  const timestep = prepared.graph.inputs.find(({ name }) => name === batchNames.timestep);
  if (timestep) await perRowTimesteps(prepared, timestep, batch);
  const { placement, policy } = profile;
  const simulation = buildSimulation(prepared, component, { placement, ...policy });
  await placeEncodings(simulation, profile);

  const { model } = simulation;
  const { graph } = model;
  const inputNamed = (name: string) => graph.inputs.find((input) => input.name === name)!;
  constantStrength(model, component.strengthInput, rank, scale);
  const trained = new Set(slots);
  for (const slot of component.slots) {
    for (const [name, shape] of [
      [slot.inputA, slot.shapeA],
      [slot.inputB, slot.shapeB],
    ] as const) {
      const dims = shape.map((dim) => (dim === "rank" ? rank : dim));
      const input = inputNamed(name);
      input.type = tensorType("float32", dims);
      if (trained.has(slot)) continue;
      const empty = new Float32Array(dims.reduce((a, b) => a * b, 1));
      graph.replace(input, graph.addInitializer(`${name}.empty`, Tensor.float32(dims, empty)));
      graph.inputs.splice(graph.inputs.indexOf(input), 1);
    }
  }
  const factors = slots.flatMap(({ inputA, inputB }) => [inputNamed(inputA), inputNamed(inputB)]);
  const built = await buildDenoiserGraph(model, factors, { ...options, straightThroughRound: true });
  return { ...built, slots };
}
