import { InputError } from "@quad-lora/base";
import { type Model, specialize, tensorType } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { factorDims, slotInputs } from "../factors/slot-layout.ts";
import { findBranches } from "./quantizable.ts";

/**
 * Operator set that quantization builds on: ScatterElements with addition (16) for the observers, QuantizeLinear per
 * channel (13). From 13 to 17 no operator of an exported diffusion model changes its meaning, so raising the number is all.
 */
const neededOpset = 17;

/** Sizes that a denoiser is fixed to when it is quantized. */
export interface DenoiserShape {
  /** Rows per run: 2 for classifier-free guidance. */
  batch: number;
  /** Latent height and width. */
  height: number;
  width: number;
  /** Tokens of the text encoder. */
  tokens: number;
}

/**
 * The form of an exposed graph that is observed, simulated, trained and compiled: shapes fixed (except the adapters'
 * rank), shape arithmetic and constants folded, identities gone. The passes are deterministic, so value names are the same
 * whenever the same graph is prepared; profiles refer to them. Edits `model` in place.
 * @param rank - any rank above 0, used to run the graph once
 */
export async function prepareGraph(
  model: Model,
  slots: SlotsFile["components"][string],
  shape: DenoiserShape,
  rank = 2,
): Promise<Model> {
  if (model.opset >= 13 && model.opset < neededOpset) model.opsets.set("", neededOpset);
  model.irVersion = Math.max(model.irVersion, 8);
  const adapterShapes = new Map(adapterInputShapes(slots));
  const inputs: Record<string, number[]> = {};
  for (const input of model.graph.inputs) {
    const symbolic = adapterShapes.get(input.name);
    inputs[input.name] = symbolic
      ? factorDims(symbolic, rank)
      : denoiserInputShape(model, input.name, input.type?.kind === "tensor" ? input.type.shape : null, shape);
  }
  await specialize(model, { inputs });
  for (const input of model.graph.inputs) {
    const symbolic = adapterShapes.get(input.name);
    if (symbolic) input.type = tensorType(input.dataType!, symbolic);
  }
  // Shapes inside the branches hold for the rank of the trial run only.
  const { parameters, rankSized } = findBranches(model, new Set(adapterShapes.keys()));
  for (const value of [...parameters.keys(), ...rankSized]) {
    if (value.producer && value.dataType) value.type = tensorType(value.dataType, null);
  }
  return model;
}

function* adapterInputShapes(slots: SlotsFile["components"][string]): Generator<[string, (number | "rank")[]]> {
  yield [slots.strengthInput, ["rank"]];
  yield* slotInputs(slots.slots);
}

function denoiserInputShape(
  model: Model,
  name: string,
  declared: readonly (number | string | null)[] | null,
  { batch, height, width, tokens }: DenoiserShape,
): number[] {
  if (!declared) {
    throw new InputError({ what: "the graph declares no shape for this input", file: model.file, where: name });
  }
  const wanted = declared.length === 4 ? [batch, -1, height, width] : declared.length === 3 ? [batch, tokens, -1] : [1];
  return declared.map((dim, axis) => {
    if (typeof dim === "number") return dim;
    const length = wanted[axis];
    if (length !== undefined && length > 0) return length;
    throw new InputError({
      what: `cannot tell the length of axis ${axis}`,
      file: model.file,
      where: `input "${name}"`,
      fix: "Export the model with this axis fixed.",
    });
  });
}
