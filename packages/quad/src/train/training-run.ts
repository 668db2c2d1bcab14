import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { totalmem } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import type { Model } from "@quad-lora/onnx";
import { findLayers, type Layer } from "../layers/find-layers.ts";
import { mean } from "../metrics/mean.ts";
import { loadComponent, type ModelFolder, openModelFolder, readScheduler } from "../model/model-folder.ts";
import { pictureSize } from "../model/picture-size.ts";
import type { TrainingCurve } from "./checkpoint.ts";
import { readTrainingFolder } from "./dataset.ts";
import { type DenoiserGraph, type DenoiserGraphOptions, parametersName } from "./denoiser-graph.ts";
import { diffusionBatches, validationBatches } from "./diffusion-batches.ts";
import { type EncodedDataset, encodeDataset } from "./encode-dataset.ts";
import { chooseLayers } from "./factors.ts";
import type { CompleteOptions } from "./options.ts";
import { constantsOf, hashOf, identityOf, type TrainingData } from "./run-identity.ts";
import { LossSession, TrainingSession } from "./training-graph.ts";
import { type TrainingResult, trainingLoop } from "./training-loop.ts";

/** What a training run wrote, and how it went. */
export interface TrainResult {
  out: string;
  layers: number;
  parameters: number;
  examples: number;
  steps: number;
  resumedFrom: number;
  /** Segments that activations were recomputed in; 1: none were. */
  segments: number;
  /** Mean loss over the last tenth of the steps. */
  loss: number;
  best: { step: number; value: number } | null;
  curve: TrainingCurve;
  /** JSON with the loss by step. */
  curvePath: string;
}

/** A graph to train, where training starts, and how the result becomes a file. */
export interface Trainee {
  graph: DenoiserGraph;
  initial: Float32Array;
  /** The layers that are trained. */
  layers: readonly Layer[];
  /** What else tells runs apart, besides {@link TrainOptions}, the base's weights and the data. */
  identity: readonly string[];
  /** Writes the trained parameters. */
  write: (parameters: Float32Array, metadata: Readonly<Record<string, string>>) => Promise<void>;
}

export type TraineeBuilder = (
  base: { folder: ModelFolder; model: Model; layers: readonly Layer[] },
  graphOptions: DenoiserGraphOptions,
) => Promise<Trainee>;

/** Share of the machine's memory that a training may take. */
const memoryShare = 0.75;

/**
 * Trains parameters of a model folder's UNet on a folder of pictures. Goes on from the checkpoint `OUT.checkpoint` where a
 * run with the same settings and data left one; it is removed when the result is written. Same input, same bytes.
 * @param isExposed - whether the folder has to be one with adapter inputs, or must not be
 * @throws InputError for folders that do not fit; the signal's reason on abort, after a checkpoint was written
 */
export async function runTraining(
  modelPath: string,
  options: CompleteOptions,
  build: TraineeBuilder,
  isExposed = false,
): Promise<TrainResult> {
  const folder = await openModelFolder(modelPath);
  refuseUnfit(folder, isExposed);
  const model = loadComponent(folder, "unet");
  const layers = chooseLayers(findLayers(model).layers, options.layers);
  const data = await encodeData(folder, model, options);

  options.onProgress?.("building the training graph", 0, 1);
  // Building edits the model.
  const base = hashOf(constantsOf(model));
  const trainee = await build({ folder, model, layers }, graphOptionsOf(options, data.train));
  const noise = await readScheduler(folder.path);
  const identity = identityOf(
    options,
    { segments: trainee.graph.segments, parts: [...trainee.identity, base] },
    noise.scheduler,
    data,
  );
  options.onProgress?.("building the training graph", 1, 1);

  const files = filesOf(options.out);
  const result = await trainTrainee(trainee, data, { ...noise, identity, files, options });
  await trainee.write(result.parameters, metadataOf(options, data.train));
  await rm(files.checkpoint, { force: true });
  return {
    out: options.out,
    layers: trainee.layers.length,
    parameters: trainee.graph.training.size,
    examples: data.train.examples.length,
    steps: options.steps,
    resumedFrom: result.resumedFrom,
    segments: trainee.graph.segments,
    loss: lastLoss(result.curve),
    best: result.best && { step: result.best.step, value: result.best.value },
    curve: result.curve,
    curvePath: files.curve,
  };
}

function refuseUnfit({ path: file, denoiser }: ModelFolder, isExposed: boolean): void {
  if (denoiser !== "unet") {
    throw new InputError({ what: "only UNets can be trained", file, fix: "Give a model folder with a UNet." });
  }
  if (existsSync(join(file, "slots.json")) === isExposed) return;
  throw new InputError({
    what: isExposed ? "the model has no adapter inputs" : "the model has adapter inputs already",
    file,
    fix: isExposed
      ? "Give the exposed folder that the profile belongs to."
      : "Give the original model folder, as it was before quad expose; or a profile too, to train on the quantized base.",
  });
}

async function encodeData(folder: ModelFolder, model: Model, options: CompleteOptions): Promise<TrainingData> {
  const { signal, onProgress } = options;
  const channels = sampleChannels(model);
  const size = await pictureSize(folder.path, options.size);
  const encode = async (path: string, stage: string, flip: boolean) => {
    const { examples, uncaptioned } = await readTrainingFolder(path);
    if (uncaptioned.length > 0) {
      const names = `${uncaptioned.slice(0, 3).join(", ")}${uncaptioned.length > 3 ? ", ..." : ""}`;
      options.onWarning?.(`${uncaptioned.length} of ${examples.length} pictures in ${path} have no caption: ${names}`);
    }
    return encodeDataset(folder.path, examples, { channels, size, flip, stage, signal, onProgress });
  };
  const train = await encode(options.pairs, "encoding", options.flip);
  return { train, held: options.validation ? await encode(options.validation, "encoding validation", false) : null };
}

function graphOptionsOf(
  { batch, clipNorm, weightDecay, segments }: CompleteOptions,
  { height, width, tokens }: EncodedDataset,
): DenoiserGraphOptions {
  const memoryLimit = memoryShare * totalmem();
  return { batch, height, width, tokens, clipNorm, weightDecay, segments, memoryLimit };
}

/** Files beside what is written. */
function filesOf(path: string): { checkpoint: string; curve: string } {
  const out = resolve(path);
  return {
    checkpoint: join(dirname(out), `${basename(out)}.checkpoint`),
    curve: `${out.replace(/\.safetensors$/, "")}.loss.json`,
  };
}

interface RunSettings extends Awaited<ReturnType<typeof readScheduler>> {
  identity: string;
  files: ReturnType<typeof filesOf>;
  options: CompleteOptions;
}

async function trainTrainee(
  { graph, initial }: Trainee,
  { train, held }: TrainingData,
  { scheduler, schedulerFile, identity, files, options }: RunSettings,
): Promise<TrainingResult> {
  const { seed, batch, threads, learningRate, steps, warmup, averageDecay, signal, onProgress } = options;
  const { captionDropout, validateEvery, checkpointEvery } = options;
  const batchOptions = { batch, seed, scheduler, schedulerFile, timestep: graph.timestep };
  const session = await TrainingSession.open(graph.training, parametersName, threads);
  const measuring = held ? await LossSession.open(graph.forward, parametersName, threads) : null;
  try {
    const batches = held ? validationBatches(held, batchOptions) : [];
    const evaluate = (parameters: Float32Array) => measuring!.meanLoss(parameters, batches);
    return await trainingLoop(session, initial, diffusionBatches(train, { ...batchOptions, captionDropout }), {
      ...{ steps, learningRate, warmup, averageDecay, seed, curvePath: files.curve },
      checkpoint: { path: files.checkpoint, every: checkpointEvery, identity },
      ...(measuring ? { evaluation: { every: validateEvery, evaluate } } : {}),
      signal,
      onStep: ({ step }) => onProgress?.("training", step, steps),
    });
  } finally {
    await session.release();
    await measuring?.release();
  }
}

/** As kohya's scripts name what a LoRA file says about its training. */
function metadataOf({ steps, learningRate, seed, batch }: CompleteOptions, { examples }: EncodedDataset) {
  return {
    ss_steps: String(steps),
    ss_learning_rate: String(learningRate),
    ss_seed: String(seed),
    ss_num_train_images: String(examples.length),
    ss_total_batch_size: String(batch),
  };
}

/** Mean over the last tenth of the steps. */
function lastLoss({ losses }: TrainingCurve): number {
  return mean(losses.slice(-Math.max(1, Math.ceil(losses.length / 10))));
}

function sampleChannels(model: Model): number {
  const type = model.graph.inputs.find(({ name }) => name === "sample")?.type;
  const channels = type?.kind === "tensor" ? type.shape?.[1] : undefined;
  if (typeof channels === "number") return channels;
  throw new InputError({
    what: "the graph has no input of latents with fixed channels",
    file: model.file,
    where: "sample",
  });
}
