import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { totalmem } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import type { Model } from "@quad-lora/onnx";
import { findLayers, type Layer } from "../layers/find-layers.ts";
import { loadComponent, type ModelFolder, openModelFolder, readScheduler } from "../model/model-folder.ts";
import { pictureSize } from "../model/picture-size.ts";
import type { TrainingCurve } from "./checkpoint.ts";
import { readTrainingFolder } from "./dataset.ts";
import { type DenoiserGraph, type DenoiserGraphOptions, parametersName } from "./denoiser-graph.ts";
import { diffusionBatches, validationBatches } from "./diffusion-batches.ts";
import { type EncodedDataset, encodeDataset } from "./encode-dataset.ts";
import { chooseLayers } from "./factors.ts";
import { LossSession, TrainingSession } from "./training-graph.ts";
import { type TrainingProgress, trainingLoop } from "./training-loop.ts";

/** What training a LoRA and training weights have in common. */
export interface TrainOptions {
  /** Folder of training pictures, see `readTrainingFolder`. */
  pairs: string;
  /** File or folder to write. */
  out: string;
  /** See `chooseLayers`. */
  layers?: string;
  steps?: number;
  batch?: number;
  learningRate?: number;
  warmup?: number;
  weightDecay?: number;
  clipNorm?: number;
  /** Decay of the parameters' moving average, which is what is written; 0 writes the last parameters. */
  averageDecay?: number;
  captionDropout?: number;
  /** Adds every example mirrored. */
  flip?: boolean;
  /** Pixels, `[height, width]`; default: what the model was trained with. */
  size?: readonly [height: number, width: number];
  /** Folder of pictures kept out of training: the parameters with the least loss on them are written. */
  validation?: string;
  /** Steps between two measurements on `validation`. */
  validateEvery?: number;
  seed?: number;
  /** Recompute activations in this many segments: less memory, more time. "auto": only where memory is short. */
  segments?: number | "auto";
  checkpointEvery?: number;
  threads?: number;
  signal?: AbortSignal;
  onStage?: (stage: string, done: number, total: number) => void;
  onProgress?: (progress: TrainingProgress) => void;
  onWarning?: (message: string) => void;
}

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

/** Defaults of {@link TrainOptions}. */
export const runDefaults = {
  layers: "attention,feed-forward",
  steps: 1500,
  batch: 8,
  learningRate: 1e-3,
  warmup: 50,
  weightDecay: 0.01,
  clipNorm: 1,
  averageDecay: 0.995,
  captionDropout: 0.1,
  flip: false,
  validateEvery: 200,
  seed: 0,
  segments: "auto",
  checkpointEvery: 100,
  threads: 2,
} as const;

export type CompleteOptions = TrainOptions & Required<Pick<TrainOptions, keyof typeof runDefaults>>;

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
  const { seed, batch, threads, signal, learningRate, steps, warmup, averageDecay, weightDecay, clipNorm } = options;
  const folder = await openModelFolder(modelPath);
  if (folder.denoiser !== "unet") {
    throw new InputError({ what: "only UNets can be trained", file: folder.path });
  }
  if (existsSync(join(folder.path, "slots.json")) !== isExposed) {
    throw new InputError({
      what: isExposed ? "the model has no adapter inputs" : "the model has adapter inputs already",
      file: folder.path,
      fix: isExposed
        ? "Give the exposed folder that the profile belongs to."
        : "Give the original model folder, as it was before quad expose; or a profile too, to train on the quantized base.",
    });
  }
  const model = loadComponent(folder, "unet");
  const candidates = chooseLayers(findLayers(model).layers, options.layers);
  const channels = sampleChannels(model);
  const size = await pictureSize(folder.path, options.size);
  const encode = async (path: string, stage: string, flip: boolean) => {
    const { examples, uncaptioned } = await readTrainingFolder(path);
    if (uncaptioned.length > 0) {
      const names = `${uncaptioned.slice(0, 3).join(", ")}${uncaptioned.length > 3 ? ", ..." : ""}`;
      options.onWarning?.(`${uncaptioned.length} of ${examples.length} pictures in ${path} have no caption: ${names}`);
    }
    return encodeDataset(folder.path, examples, {
      ...{ channels, size, flip },
      signal,
      onProgress: (done, total) => options.onStage?.(stage, done, total),
    });
  };
  const dataset = await encode(options.pairs, "encoding", options.flip);
  const held = options.validation ? await encode(options.validation, "encoding validation", false) : null;

  options.onStage?.("building the training graph", 0, 1);
  const { height, width, tokens } = dataset;
  const base = hashOf(constantsOf(model));
  const { graph, initial, identity, layers, write } = await build(
    { folder, model, layers: candidates },
    {
      ...{ batch, height, width, tokens, clipNorm, weightDecay },
      segments: options.segments,
      memoryLimit: memoryShare * totalmem(),
    },
  );
  const { scheduler, schedulerFile } = await readScheduler(folder.path);
  const { captionDropout, validateEvery } = options;
  const batchOptions = { batch, seed, scheduler, schedulerFile, timestep: graph.timestep };
  const source = diffusionBatches(dataset, { ...batchOptions, captionDropout });
  const settings = { batch, seed, learningRate, steps, warmup, averageDecay, threads, weightDecay, clipNorm };
  const runIdentity = hashOf([
    JSON.stringify({ ...settings, captionDropout, validateEvery, scheduler, segments: graph.segments }),
    ...identity,
    base,
    ...dataBytes(dataset),
    ...(held ? dataBytes(held) : []),
  ]);
  options.onStage?.("building the training graph", 1, 1);

  const out = resolve(options.out);
  const checkpoint = join(dirname(out), `${basename(out)}.checkpoint`);
  const curvePath = `${out.replace(/\.safetensors$/, "")}.loss.json`;
  const session = await TrainingSession.open(graph.training, parametersName, threads);
  const measuring = held ? await LossSession.open(graph.forward, parametersName, threads) : null;
  try {
    const batches = held ? validationBatches(held, batchOptions) : [];
    const evaluate = async (parameters: Float32Array) => {
      let sum = 0;
      for (const tensors of batches) sum += await measuring!.loss(parameters, tensors);
      return sum / batches.length;
    };
    const result = await trainingLoop(session, initial, source, {
      ...{ steps, learningRate, warmup, averageDecay, seed, curvePath },
      checkpoint: { path: checkpoint, every: options.checkpointEvery, identity: runIdentity },
      ...(measuring ? { evaluation: { every: validateEvery, evaluate } } : {}),
      signal,
      onProgress: options.onProgress,
    });
    await write(result.parameters, {
      ss_steps: String(steps),
      ss_learning_rate: String(learningRate),
      ss_seed: String(seed),
      ss_num_train_images: String(dataset.examples.length),
      ss_total_batch_size: String(batch),
    });
    await rm(checkpoint, { force: true });
    const { losses } = result.curve;
    const tail = losses.slice(-Math.max(1, Math.ceil(losses.length / 10)));
    return {
      out: options.out,
      layers: layers.length,
      parameters: graph.training.size,
      examples: dataset.examples.length,
      steps,
      resumedFrom: result.resumedFrom,
      segments: graph.segments,
      loss: tail.reduce((sum, loss) => sum + loss, 0) / tail.length,
      best: result.best && { step: result.best.step, value: result.best.value },
      curve: result.curve,
      curvePath,
    };
  } finally {
    await session.release();
    await measuring?.release();
  }
}

export function withoutUndefined<Options extends object>(options: Options): Options {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Options;
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

/** The graph's weights, wherever they lie. */
function* constantsOf({ graph }: Model): Generator<Uint8Array | string> {
  for (const { name, initializer } of graph.initializers) {
    yield name;
    yield initializer!.bytes();
  }
}

function* dataBytes({ examples, texts }: EncodedDataset): Generator<Uint8Array | string> {
  for (const { latents, conditioning, caption } of examples) {
    yield bytesOf(latents);
    yield bytesOf(conditioning);
    yield caption;
  }
  for (const states of texts.values()) yield bytesOf(states);
}

export function bytesOf({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** SHA-256 of all parts one after the other, as hexadecimal digits. */
export function hashOf(parts: Iterable<Uint8Array | string>): string {
  const sum = createHash("sha256");
  for (const part of parts) sum.update(part);
  return sum.digest("hex");
}
