import { type Model, specialize, tensorType } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { factorDims, slotInputs } from "../factors/slot-layout.ts";
import { type DenoiserShape, denoiserDims } from "../model/denoiser.ts";
import { computeInFloat32 } from "./in-float32.ts";
import { findBranches } from "./quantizable.ts";

/**
 * Operator set that quantization builds on: ScatterElements with addition (16) for the observers, QuantizeLinear per
 * channel (13). From 13 to 17 no operator of an exported diffusion model changes its meaning, so raising the number is all.
 */
const neededOpset = 17;

/**
 * The form of an exposed graph that is observed, simulated, trained and compiled: shapes fixed (except the adapters'
 * rank), in float32, shape arithmetic and constants folded, identities gone. The passes are deterministic, so value names are the same
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
  computeInFloat32(model);
  const adapterShapes = new Map(adapterInputShapes(slots));
  const own = model.graph.inputs.filter(({ name }) => !adapterShapes.has(name));
  const inputs = denoiserDims(own, shape, model.file);
  for (const { name } of model.graph.inputs) {
    const symbolic = adapterShapes.get(name);
    if (symbolic) inputs[name] = factorDims(symbolic, rank);
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
