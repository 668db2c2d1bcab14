import { InputError } from "@quad-lora/base";
import {
  Builder,
  cloneModel,
  deadCodeElimination,
  type Model,
  meanSquaredError,
  packInputs,
  runPasses,
  specialize,
  type Value,
} from "@quad-lora/onnx";
import { buildTrainingGraph, type TrainingGraph, type TrainingGraphOptions } from "./training-graph.ts";

/** Names of the training graph's batch inputs. */
export const batchNames = {
  /** `[batch, channels, height, width]`: noisy latents, and conditioning behind them. */
  sample: "sample",
  /** `[batch]`, or the graph's own shape where it takes one time step for all rows. */
  timestep: "timestep",
  /** `[batch, tokens, width]` */
  text: "encoder_hidden_states",
  /** `[batch, latent channels, height, width]`: what the network should predict. */
  target: "training.target",
} as const;

export const parametersName = "training.parameters";

export interface DenoiserGraphOptions extends Omit<TrainingGraphOptions, "segments" | "checkpoint"> {
  batch: number;
  /** Latent height and width. */
  height: number;
  width: number;
  /** Tokens of the text encoder. */
  tokens: number;
  /** Segments of recomputation; "auto" takes as few as fit into `memoryLimit`. */
  segments: number | "auto";
  /** Bytes that training may take. */
  memoryLimit: number;
}

export interface DenoiserGraph {
  training: TrainingGraph;
  /** The same without gradients; its first output is the loss. */
  forward: Model;
  timestep: { type: "int64" | "int32" | "float32"; dims: number[] };
  /** Segments that activations are recomputed in; 1: all are kept. */
  segments: number;
}

/** Recomputation saves little beyond the square root of the layers, and each segment costs time. */
const segmentChoices = [1, 2, 4, 8, 16];
/** Vectors of the parameters' length that the graph reads, makes and returns: parameters and two means, old and new, gradient. */
const vectorsInGraph = 7;
/** Those in JavaScript that the graph does not know: average, best, and what a checkpoint copies. */
const vectorsOutside = 4;

/** @throws InputError for graphs of other inputs or types than a text-conditioned UNet's */
export function checkDenoiser(model: Model): void {
  const expected: string[] = [batchNames.sample, batchNames.timestep, batchNames.text];
  const names = model.graph.inputs.map(({ name }) => name);
  if (expected.some((name) => !names.includes(name)) || names.some((name) => !expected.includes(name))) {
    throw new InputError({
      what: "this kind of denoiser cannot be trained",
      file: model.file,
      expected: `a UNet with the inputs ${expected.join(", ")}`,
      got: names.join(", "),
    });
  }
  for (const input of model.graph.inputs) {
    if (input.name === batchNames.timestep || input.dataType === "float32") continue;
    throw new InputError({
      what: "training needs a float32 graph",
      file: model.file,
      where: `input "${input.name}"`,
      got: input.dataType ?? "no type",
      fix: "Export the model in full precision.",
    });
  }
}

/**
 * A UNet's training graph: mean squared error of the prediction, gradients by the parameters, one AdamW step. Edits `model`
 * in place.
 * @param parameters - graph inputs of concrete shapes; they become pieces of one vector
 * @throws InputError where even with recomputation the training needs more than `memoryLimit`
 */
export async function buildDenoiserGraph(
  model: Model,
  parameters: readonly Value[],
  options: DenoiserGraphOptions,
): Promise<DenoiserGraph> {
  const { graph } = model;
  const { batch, height, width, tokens } = options;
  const inputNamed = (name: string) => graph.inputs.find((input) => input.name === name)!;
  const timestep = inputNamed(batchNames.timestep);
  const timestepRank = timestep.type?.kind === "tensor" ? (timestep.type.shape?.length ?? 0) : 0;
  await specialize(model, {
    inputs: {
      [batchNames.sample]: [batch, declared(inputNamed(batchNames.sample), 1), height, width],
      [batchNames.timestep]: timestepRank === 0 ? [] : [batch],
      [batchNames.text]: [batch, tokens, declared(inputNamed(batchNames.text), 2)],
    },
  });
  const times = await perRowTimesteps(model, timestep, batch);
  const packed = packInputs(model, parameters, parametersName);
  const build = new Builder(model);
  build.scope = "training";
  const output = graph.outputs[0];
  const target = graph.addInput(batchNames.target, "float32", build.dims(output));
  const loss = meanSquaredError(build, output, target);
  graph.outputs.splice(0, graph.outputs.length, loss);

  const { segments, memoryLimit } = options;
  const ofState = 4 * packed.size * vectorsInGraph;
  const ofVectors = 4 * packed.size * vectorsOutside;
  let least = ofState + ofVectors;
  for (const choice of segments === "auto" ? segmentChoices : [segments]) {
    if (segments === "auto" && ofState + ofVectors > memoryLimit) break;
    const copy = cloneModel(model);
    const vector = copy.graph.inputs.find(({ name }) => name === parametersName)!;
    const graphOptions = { ...options, segments: choice };
    const training = await buildTrainingGraph(copy, copy.graph.outputs[0], { ...packed, vector }, graphOptions);
    const bytes = training.peakBytes + ofVectors;
    if (segments !== "auto" || bytes <= memoryLimit) {
      const timestepInput = { type: times.dataType as "int64", dims: [...build.dims(times)] };
      return { training, forward: model, timestep: timestepInput, segments: choice };
    }
    least = choice === segmentChoices[0] ? bytes : Math.min(least, bytes);
  }
  throw new InputError({
    what: "this training does not fit into the machine's memory",
    file: model.file,
    expected: `at most ${gigabytes(memoryLimit)}`,
    got: `at least ${gigabytes(least)} for ${packed.size} parameters and batch ${batch}`,
    fix: "Give a smaller --batch or --size, or fewer --layers.",
  });
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toPrecision(3)} GB`;
}

function declared(input: Value, axis: number): number {
  const dim = input.type?.kind === "tensor" ? input.type.shape?.[axis] : undefined;
  if (typeof dim === "number") return dim;
  throw new InputError({
    what: `the graph does not say how long axis ${axis} is`,
    where: `input "${input.name}"`,
    fix: "Export the model with this axis fixed.",
  });
}

const movements = new Set(["Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity", "Expand"]);

/**
 * Exporters give the UNet one time step for the whole batch and expand it to the rows; training wants one per row. Where the
 * graph expands, an input of that size takes over. Where it does not (a batch of one row, or time embeddings that are
 * broadcast later) the graph keeps its own input.
 * @returns the graph's input for time steps
 */
export async function perRowTimesteps(model: Model, timestep: Value, batch: number): Promise<Value> {
  const { graph } = model;
  if (timestep.concreteShape?.[0] === batch) return timestep;
  for (let value = timestep; ; ) {
    const [reader, ...others] = value.uses;
    if (!reader || others.length > 0 || !movements.has(reader.node.opType)) return timestep;
    value = reader.node.output();
    if (value.concreteShape?.length !== 1 || value.concreteShape[0] !== batch || !value.dataType) continue;
    timestep.name = graph.claimName(`${batchNames.timestep}.scalar`);
    const rows = graph.addInput("training.timesteps", value.dataType, [batch]);
    graph.replace(value, rows);
    await runPasses(model, [deadCodeElimination]);
    if (graph.inputs.includes(timestep)) graph.inputs.splice(graph.inputs.indexOf(timestep), 1);
    rows.name = batchNames.timestep;
    return rows;
  }
}
