import { type Model, tensorType } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { fixFactors, fixStrength } from "../expose/fix-factors.ts";
import type { Layer } from "../layers/find-layers.ts";
import { perRowTimesteps } from "../model/timesteps.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import type { Profile } from "../records/profile.ts";
import { placeEncodings } from "../simulate/place-encodings.ts";
import { buildSimulation } from "../simulate/simulation-graph.ts";
import { type AdapterGraph, type AdapterGraphOptions, requireSlots } from "./adapter-graph.ts";
import { buildDenoiserGraph } from "./denoiser-graph.ts";

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
  await perRowTimesteps(prepared, batch);
  const { placement, policy } = profile;
  const simulation = buildSimulation(prepared, component, { placement, ...policy });
  await placeEncodings(simulation, profile);

  const { model } = simulation;
  const { graph } = model;
  const inputNamed = (name: string) => graph.inputs.find((input) => input.name === name)!;
  fixStrength(graph, component.strengthInput, rank, scale);
  const trained = new Set(slots.flatMap(({ inputA, inputB }) => [inputA, inputB]));
  const shapes = fixFactors(graph, component, rank, new Map(), trained);
  for (const [name, dims] of Object.entries(shapes)) inputNamed(name).type = tensorType("float32", dims);
  const factors = slots.flatMap(({ inputA, inputB }) => [inputNamed(inputA), inputNamed(inputB)]);
  const built = await buildDenoiserGraph(model, factors, { ...options, straightThroughRound: true });
  return { ...built, slots };
}
