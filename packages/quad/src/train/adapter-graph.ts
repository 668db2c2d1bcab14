import { InputError } from "@quad-lora/base";
import type { Model } from "@quad-lora/onnx";
import type { Slot } from "@quad-lora/runtime";
import { exposeGraph } from "../expose/expose-graph.ts";
import { fixStrength } from "../expose/fix-factors.ts";
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
  fixStrength(graph, strengthInput, rank, scale);
  const factors = slots.flatMap(({ inputA, inputB }) => [inputNamed(inputA), inputNamed(inputB)]);
  return { ...(await buildDenoiserGraph(model, factors, options)), slots };
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
