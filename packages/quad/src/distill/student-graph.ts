import { InputError } from "@quad-lora/base";
import {
  Builder,
  cloneModel,
  type Dims,
  elementCount,
  type Graph,
  type Model,
  packInputs,
  runPasses,
  specialize,
  type Value,
} from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { fixFactors, fixStrength } from "../expose/fix-factors.ts";
import { perRowTimesteps, type TimestepPort } from "../model/timesteps.ts";
import { gridLimits } from "../quantization/index.ts";
import type { Profile } from "../records/profile.ts";
import { placeEncodings } from "../simulate/place-encodings.ts";
import { buildSimulation } from "../simulate/simulation-graph.ts";
import { buildTrainingGraph, type TrainingGraph, type TrainingGraphOptions } from "../train/training-graph.ts";
import { codesPerUnit, type FactorInput } from "./factor-codes.ts";
import type { FeatureBlock } from "./feature-blocks.ts";
import { featureInput } from "./feature-teacher.ts";

/** Names of what a distillation step takes besides the denoiser's own inputs. */
export const distillNames = {
  parameters: "distill.factors",
  /** `[rows, channels, height, width]`: the teacher's predictions. */
  teacher: "distill.teacher",
  /** As large: what the denoising objective asks for. */
  denoising: "distill.denoising",
  /** `[rows]`: weight of each row in the loss. */
  rowWeights: "distill.row_weights",
  /** `[calls, rows per call]`: how guidance combines the rows of a call. */
  guidance: "distill.guidance",
  /** `[calls]`: weight of each call's guided prediction. */
  callWeights: "distill.call_weights",
} as const;

export interface StudentOptions extends Omit<TrainingGraphOptions, "straightThroughRound" | "terms"> {
  /** Calls of the denoiser per step. */
  calls: number;
  /** Rows per call: 2 with classifier-free guidance. */
  rowsPerCall: number;
  rank: number;
  reconstruction: number;
  guided: number;
  denoising: number;
  /** Weight of the features' error; default: 0, none. */
  features?: number;
  /** Where features are compared, from `findFeatureBlocks`. */
  blocks?: readonly FeatureBlock[];
}

export interface StudentGraph {
  training: TrainingGraph;
  /** The same without gradients; its output is what validation measures: the distance from the teacher. */
  forward: Model;
  /** How it takes time steps; null where it takes none. */
  timestep: TimestepPort | null;
  /** Names of the inputs that a batch gives. */
  batchInputs: ReadonlySet<string>;
}

/**
 * The graph of one distillation step. The student is the simulated graph on the profile's encodings, its factors rounded to
 * the slots' grids; gradients pass rounding unchanged and stop where a range clips.
 * @param prepared - from `prepareGraph` for `calls * rowsPerCall` rows; edited in place
 * @param inputs - the slot inputs that are trained; the others are zero
 * @throws InputError if the profile lacks a quantization point
 */
export async function buildStudent(
  prepared: Model,
  slots: SlotsFile["components"][string],
  profile: Profile,
  inputs: readonly FactorInput[],
  options: StudentOptions,
): Promise<StudentGraph> {
  const rows = options.calls * options.rowsPerCall;
  const timestep = await perRowTimesteps(prepared, rows);
  const { placement, policy } = profile;
  const { weightBits, weightMethod } = policy;
  const simulation = buildSimulation(prepared, slots, { placement, weightBits, weightMethod });
  const { model } = simulation;
  const { graph } = model;
  const inputNamed = (name: string) => graph.inputs.find((input) => input.name === name)!;
  await placeEncodings(simulation, profile);
  const trained = new Set(inputs.map(({ name }) => name));
  fixStrength(graph, slots.strengthInput, options.rank);
  const shapes: Record<string, Dims> = fixFactors(graph, slots, options.rank, new Map(), trained);
  const { features = 0, blocks = [] } = options;
  // As outputs, they outlive the passes under whatever name.
  if (features > 0) graph.outputs.push(...blocks.map(({ output }) => valueNamed(graph, output)));
  for (const input of graph.inputs) shapes[input.name] ??= input.concreteShape!;
  await specialize(model, { inputs: shapes });

  const build = new Builder(model);
  build.scope = "student";
  const bits = policy.adapterBits;
  const { low, high } = gridLimits({ bits, signed: true, symmetric: true });
  const units = codesPerUnit(bits);
  for (const { name, scale } of inputs) {
    const input = inputNamed(name);
    const readers = input.uses;
    const codes = build.mul(input, units);
    const clipped = build.op("Clip", [codes, build.scalar(low, input), build.scalar(high, input)], build.dims(input));
    const values = build.mul(build.unary("Round", clipped), scale);
    for (const { node, index } of readers) node.setInput(index, values);
  }
  const packed = packInputs(
    model,
    inputs.map(({ name }) => inputNamed(name)),
    distillNames.parameters,
  );
  const { loss, distance } = buildLoss(build, graph.outputs[0], options);
  const studentFeatures = graph.outputs.slice(1);
  graph.outputs.splice(0, graph.outputs.length, distance);
  const forward = cloneModel(model);
  await runPasses(forward);
  // Validation measures predictions only, so the features' inputs come after its graph was copied.
  const featureError = features > 0 ? buildFeatureError(build, studentFeatures, blocks) : null;
  const total = featureError ? build.add(loss, build.mul(featureError, features)) : loss;
  graph.outputs.splice(0, 1, total);
  const batchInputs = new Set(graph.inputs.map(({ name }) => name).filter((name) => name !== distillNames.parameters));
  const training = await buildTrainingGraph(model, total, packed, {
    ...options,
    ...(featureError ? { terms: { features: featureError } } : {}),
    straightThroughRound: true,
  });
  return { training, forward, batchInputs, timestep };
}

/**
 * `reconstruction * sum of w |student - teacher|^2 + guided * (the same of the guided predictions) + denoising *
 * sum of w |student - target|^2`, each sum over elements divided by their number. Its other terms are graph inputs, see
 * {@link distillNames}. `distance` is the guided term alone, or the first one where a call has a single row.
 */
export function buildLoss(
  build: Builder,
  student: Value,
  {
    calls,
    rowsPerCall,
    reconstruction,
    guided,
    denoising,
  }: Pick<StudentOptions, "calls" | "rowsPerCall" | "reconstruction" | "guided" | "denoising">,
): { loss: Value; distance: Value } {
  const { graph } = build;
  const dims = build.dims(student);
  const rowSize = elementCount(dims.slice(1));
  const rows = dims[0];
  const weighted = (error: Value, weights: Value, count: number) => {
    const squares = build.mul(error, error);
    const perRow = build.reduce("ReduceMean", build.reshape(squares, [count, rowSize]), [1]);
    return build.reshape(build.reduce("ReduceMean", build.mul(perRow, build.reshape(weights, [count, 1])), [0]), []);
  };
  const rowWeights = graph.addInput(distillNames.rowWeights, "float32", [rows]);
  const error = build.sub(student, graph.addInput(distillNames.teacher, "float32", dims));
  const plain = weighted(error, rowWeights, rows);
  const terms = [build.mul(plain, reconstruction)];
  let distance = plain;
  if (rowsPerCall > 1) {
    const guidance = graph.addInput(distillNames.guidance, "float32", [calls, rowsPerCall]);
    const callWeights = graph.addInput(distillNames.callWeights, "float32", [calls]);
    const grouped = build.reshape(error, [calls, rowsPerCall, rowSize]);
    const combined = build.reduce(
      "ReduceSum",
      build.mul(grouped, build.reshape(guidance, [calls, rowsPerCall, 1])),
      [1],
    );
    distance = weighted(build.reshape(combined, [calls, rowSize]), callWeights, calls);
    terms.push(build.mul(distance, guided));
  }
  if (denoising > 0) {
    const target = graph.addInput(distillNames.denoising, "float32", dims);
    terms.push(build.mul(weighted(build.sub(student, target), rowWeights, rows), denoising));
  }
  return { loss: terms.reduce((sum, term) => build.add(sum, term)), distance };
}

/** Mean over blocks of `mean |student - teacher|^2 / mean |teacher|^2`: blocks of all sizes and scales count the same. */
function buildFeatureError(build: Builder, features: readonly Value[], blocks: readonly FeatureBlock[]): Value {
  const meanSquare = (value: Value) => {
    const size = elementCount(build.dims(value));
    const flat = build.reshape(build.mul(value, value), [size]);
    return build.reshape(build.reduce("ReduceMean", flat, [0]), []);
  };
  const errors = features.map((student, index) => {
    const teacher = build.graph.addInput(featureInput(blocks[index]), "float32", build.dims(student));
    const power = build.op("Max", [meanSquare(teacher), build.scalar(1e-30, teacher)], []);
    return build.div(meanSquare(build.sub(student, teacher)), power);
  });
  return build.mul(
    errors.reduce((sum, error) => build.add(sum, error)),
    1 / errors.length,
  );
}

function valueNamed(graph: Graph, name: string): Value {
  for (const { outputs } of graph.nodes) for (const value of outputs) if (value?.name === name) return value;
  throw new InputError({ what: "the student's graph has lost a value of the prepared one", where: name });
}
