import { Builder, cloneModel, type Dims, type Model, runPasses, specialize, Tensor, type Value } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { buildLoss, type StudentGraph } from "../distill/student-graph.ts";
import { fixStrength } from "../expose/fix-factors.ts";
import { factorDims, slotInputs } from "../factors/slot-layout.ts";
import { perRowTimesteps } from "../model/timesteps.ts";
import type { Profile } from "../records/profile.ts";
import { placeEncodings } from "../simulate/place-encodings.ts";
import { buildSimulation } from "../simulate/simulation-graph.ts";
import { buildTrainingGraph, type TrainingGraphOptions } from "../train/training-graph.ts";
import { type RangeGroup, rangeGroups } from "./range-groups.ts";

/** The graph input that is trained, `[groups]`: logarithms of the factors on the scales. */
export const rangeParameters = "tune.log_factors";

export interface RangeGraphOptions extends Omit<TrainingGraphOptions, "straightThroughRound"> {
  /** Calls of the denoiser per step. */
  calls: number;
  /** Rows per call: 2 with classifier-free guidance. */
  rowsPerCall: number;
  /** Rank of the adapters' factors, which are inputs. */
  rank: number;
  reconstruction: number;
  guided: number;
}

export interface RangeGraph extends StudentGraph {
  /** What the trained vector holds, by index. */
  groups: RangeGroup[];
}

/**
 * The graph of one step that trains the 8-bit ranges of a profile: the simulated graph whose narrow points quantize with
 * `s = s_0 exp(p)`, their zero points fixed. By `s`, QuantizeLinear and DequantizeLinear together have the gradient of
 * learned step size quantization (Esser et al. 2019, arXiv 1902.08153): `round(x / s) - x / s` inside the grid, the grid's end
 * beyond. By `p` it is that times `s`: one learning rate suits points of all sizes, and scales stay positive. Adapter
 * factors are inputs: a batch brings those of its task.
 * @param prepared - from `prepareGraph` for `calls * rowsPerCall` rows; edited in place
 * @throws InputError if the profile lacks a quantization point, or has no 8-bit one
 */
export async function buildRangeGraph(
  prepared: Model,
  slots: SlotsFile["components"][string],
  profile: Profile,
  options: RangeGraphOptions,
): Promise<RangeGraph> {
  const rows = options.calls * options.rowsPerCall;
  const timestep = await perRowTimesteps(prepared, rows);
  const { placement, policy } = profile;
  const simulation = buildSimulation(prepared, slots, { placement, ...policy });
  const { model } = simulation;
  const { graph } = model;
  const groups = rangeGroups(simulation.points, profile);
  const factors = graph.addInput(rangeParameters, "float32", [groups.length]);
  const scales = trainedScales(new Builder(model), factors, groups);
  await placeEncodings(simulation, profile, scales);

  const { rank } = options;
  fixStrength(graph, slots.strengthInput, rank);
  const shapes: Record<string, Dims> = {};
  for (const [name, shape] of slotInputs(slots.slots)) shapes[name] = factorDims(shape, rank);
  for (const input of graph.inputs) shapes[input.name] ??= input.concreteShape!;
  await specialize(model, { inputs: shapes });

  const build = new Builder(model);
  build.scope = "tune";
  const { loss, distance } = buildLoss(build, graph.outputs[0], { ...options, denoising: 0 });
  graph.outputs.splice(0, graph.outputs.length, distance);
  const forward = cloneModel(model);
  await runPasses(forward);
  graph.outputs.splice(0, 1, loss);
  const batchInputs = new Set(graph.inputs.map(({ name }) => name).filter((name) => name !== rangeParameters));
  const vector = graph.inputs.find(({ name }) => name === rangeParameters)!;
  const layout = [{ name: rangeParameters, offset: 0, dims: [groups.length] }];
  const training = await buildTrainingGraph(model, loss, { vector, size: groups.length, layout }, options);
  return { training, forward, groups, batchInputs, timestep };
}

/** A scalar per point: its group's scale times exp of the group's factor. */
function trainedScales(build: Builder, factors: Value, groups: readonly RangeGroup[]): Map<string, Value> {
  build.scope = "tune/scales";
  const start = build.tensor(
    Tensor.float32(
      [groups.length],
      groups.map(({ scale }) => scale),
    ),
  );
  const scales = build.split(
    build.mul(start, build.unary("Exp", factors)),
    0,
    groups.map(() => 1),
  );
  return new Map(
    groups.flatMap(({ points }, index) => {
      const scale = build.reshape(scales[index], []);
      return points.map((name): [string, Value] => [name, scale]);
    }),
  );
}
