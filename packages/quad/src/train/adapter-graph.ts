import { InputError, type Model, Tensor } from "@quad/onnx";
import type { Slot } from "@quad/runtime";
import { exposeGraph } from "../expose/expose-graph.ts";
import type { Layer } from "../layers/find-layers.ts";
import { buildDenoiserGraph, checkDenoiser, type DenoiserGraph, type DenoiserGraphOptions } from "./denoiser-graph.ts";

export interface AdapterGraphOptions extends DenoiserGraphOptions {
  rank: number;
  /** alpha / rank: what the branch's output is multiplied by. */
  scale: number;
}

export interface AdapterGraph extends DenoiserGraph {
  slots: Slot[];
}

/**
 * A UNet's training graph for LoRA factors on the chosen layers. The base stays as it is. Edits `model` in place.
 * @throws InputError for graphs of other inputs or types than a text-conditioned UNet's
 */
export async function buildAdapterGraph(
  model: Model,
  layers: readonly Layer[],
  options: AdapterGraphOptions,
): Promise<AdapterGraph> {
  checkDenoiser(model);
  const { graph } = model;
  const { rank, scale } = options;
  const { slots, strengthInput } = exposeGraph(model, "unet", layers, { kind: "fixed", rank });
  const inputNamed = (name: string) => graph.inputs.find((input) => input.name === name)!;
  constantStrength(model, strengthInput, rank, scale);
  const factors = slots.flatMap(({ inputA, inputB }) => [inputNamed(inputA), inputNamed(inputB)]);
  return { ...(await buildDenoiserGraph(model, factors, options)), slots };
}

/** Makes the strengths a constant: `scale` for every rank. */
export function constantStrength({ graph }: Model, strengthInput: string, rank: number, scale: number): void {
  const strength = graph.inputs.find((input) => input.name === strengthInput)!;
  graph.replace(strength, graph.addInitializer("training.scale", Tensor.float32([rank], new Array(rank).fill(scale))));
  graph.inputs.splice(graph.inputs.indexOf(strength), 1);
}

/** The slots of the chosen layers. @throws InputError where there is none */
export function requireSlots(slots: readonly Slot[], layers: readonly Layer[], model: Model): Slot[] {
  const names = new Set(layers.map(({ name }) => name));
  const chosen = slots.filter(({ name }) => names.has(name));
  if (chosen.length > 0) return chosen;
  throw new InputError({
    what: "none of the chosen layers has an adapter input",
    file: model.file,
    expected: `layers such as ${slots[0]?.name ?? "none"}`,
    fix: "Choose others with --layers, or expose the model with these.",
  });
}
