import { InputError } from "@quad-lora/base";
import { Builder, cloneModel, type Model, meanSquaredError, packInputs, specialize, type Value } from "@quad-lora/onnx";
import { denoiserDims, textInput, timestepInput } from "../model/denoiser.ts";
import { perRowTimesteps, type TimestepPort } from "../model/timesteps.ts";
import { buildTrainingGraph, type TrainingGraph, type TrainingGraphOptions } from "./training-graph.ts";

/** Names of the training graph's batch inputs. */
export const batchNames = {
  /** `[batch, channels, height, width]`: noisy latents, and conditioning behind them. */
  sample: "sample",
  /** `[batch]`, or the graph's own shape where it takes one time step for all rows. */
  timestep: timestepInput,
  /** `[batch, tokens, width]` */
  text: textInput,
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
  /** How it takes time steps; null where it takes none. */
  timestep: TimestepPort | null;
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
  const own = graph.inputs.filter((input) => !parameters.includes(input));
  const shape = { batch, height, width, tokens, rowTimesteps: true };
  await specialize(model, { inputs: denoiserDims(own, shape, model.file) });
  const timestep = await perRowTimesteps(model, batch);
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
      return { training, forward: model, timestep, segments: choice };
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
