import {
  Builder,
  cloneModel,
  deadCodeElimination,
  InputError,
  type Model,
  meanSquaredError,
  packInputs,
  runPasses,
  specialize,
  Tensor,
  type Value,
} from "@quad/onnx";
import type { Slot } from "@quad/runtime";
import { exposeGraph } from "../expose/expose-graph.ts";
import type { Layer } from "../layers/find-layers.ts";
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

export interface AdapterGraphOptions extends TrainingGraphOptions {
  rank: number;
  /** alpha / rank: what the branch's output is multiplied by. */
  scale: number;
  batch: number;
  /** Latent height and width. */
  height: number;
  width: number;
  /** Tokens of the text encoder. */
  tokens: number;
}

export interface AdapterGraph {
  training: TrainingGraph;
  /** The same without gradients; its first output is the loss. */
  forward: Model;
  slots: Slot[];
  timestep: { type: "int64" | "int32" | "float32"; dims: number[] };
}

/**
 * A UNet's training graph for LoRA factors on the chosen layers: mean squared error of the prediction, gradients by the
 * factors, one AdamW step. The base stays as it is. Edits `model` in place.
 * @throws InputError for graphs of other inputs or types than a text-conditioned UNet's
 */
export async function buildAdapterGraph(
  model: Model,
  layers: readonly Layer[],
  options: AdapterGraphOptions,
): Promise<AdapterGraph> {
  checkInputs(model);
  const { graph } = model;
  const { rank, scale, batch, height, width, tokens } = options;
  const { slots, strengthInput } = exposeGraph(model, "unet", layers, { kind: "fixed", rank });
  const inputNamed = (name: string) => graph.inputs.find((input) => input.name === name)!;
  const strength = inputNamed(strengthInput);
  graph.replace(strength, graph.addInitializer("training.scale", Tensor.float32([rank], new Array(rank).fill(scale))));
  graph.inputs.splice(graph.inputs.indexOf(strength), 1);

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
  const factors = slots.flatMap(({ inputA, inputB }) => [inputNamed(inputA), inputNamed(inputB)]);
  const packed = packInputs(model, factors, parametersName);
  const build = new Builder(model);
  build.scope = "training";
  const output = graph.outputs[0];
  const target = graph.addInput(batchNames.target, "float32", build.dims(output));
  const loss = meanSquaredError(build, output, target);
  graph.outputs.splice(0, graph.outputs.length, loss);
  const forward = cloneModel(model);
  return {
    training: await buildTrainingGraph(model, loss, packed, options),
    forward,
    slots,
    timestep: { type: times.dataType as "int64", dims: [...build.dims(times)] },
  };
}

function checkInputs(model: Model): void {
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
async function perRowTimesteps(model: Model, timestep: Value, batch: number): Promise<Value> {
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
