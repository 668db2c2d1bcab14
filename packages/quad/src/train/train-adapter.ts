import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { InputError, type Model } from "@quad/onnx";
import { z } from "zod";
import { type WriteAdapterOptions, writeKohya, writePeft } from "../adapters/write.ts";
import { toModule } from "../expose/expose.ts";
import { findLayers } from "../layers/find-layers.ts";
import { componentFile, loadComponent, openModelFolder, parseJsonFile } from "../model/model-folder.ts";
import { buildAdapterGraph, parametersName } from "./adapter-graph.ts";
import type { TrainingCurve } from "./checkpoint.ts";
import { readTrainingFolder } from "./dataset.ts";
import { diffusionBatches, validationBatches } from "./diffusion-batches.ts";
import { type EncodedDataset, encodeDataset } from "./encode-dataset.ts";
import { adapterLayers, chooseLayers, initialFactors } from "./factors.ts";
import { LossSession, TrainingSession } from "./training-graph.ts";
import { type TrainingProgress, trainingLoop } from "./training-loop.ts";

/** Options of {@link trainAdapter}. */
export interface TrainAdapterOptions {
  /** Folder of training pictures, see `readTrainingFolder`. */
  pairs: string;
  /** File (kohya) or folder (PEFT) to write. */
  out: string;
  format?: "kohya" | "peft";
  dtype?: NonNullable<WriteAdapterOptions["dtype"]>;
  rank?: number;
  /** Strength of the branch is alpha / rank; folded into B in the file. Default: the rank. */
  alpha?: number;
  /** See `chooseLayers`. */
  layers?: string;
  steps?: number;
  batch?: number;
  learningRate?: number;
  warmup?: number;
  weightDecay?: number;
  clipNorm?: number;
  /** Decay of the factors' moving average, which is what is written; 0 writes the last factors. */
  averageDecay?: number;
  captionDropout?: number;
  /** Adds every example mirrored. */
  flip?: boolean;
  /** Pixels, `[height, width]`; default: what the model was trained with. */
  size?: readonly [height: number, width: number];
  /** Folder of pictures kept out of training: the factors with the least loss on them are written. */
  validation?: string;
  /** Steps between two measurements on `validation`. */
  validateEvery?: number;
  seed?: number;
  /** Recompute activations in this many segments: less memory, more time. */
  segments?: number;
  checkpointEvery?: number;
  threads?: number;
  signal?: AbortSignal;
  onStage?: (stage: string, done: number, total: number) => void;
  onProgress?: (progress: TrainingProgress) => void;
  onWarning?: (message: string) => void;
}

export interface TrainAdapterResult {
  out: string;
  layers: number;
  parameters: number;
  examples: number;
  steps: number;
  resumedFrom: number;
  /** Mean loss over the last tenth of the steps. */
  loss: number;
  best: { step: number; value: number } | null;
  curve: TrainingCurve;
  /** JSON with the loss by step. */
  curvePath: string;
}

const sampleSizeSchema = z.looseObject({
  sample_size: z.union([z.int().positive(), z.tuple([z.int().positive(), z.int().positive()])]).default(64),
});
const vaeBlocksSchema = z.looseObject({ block_out_channels: z.array(z.number()).min(1).default([128, 256, 512, 512]) });

/** Defaults of {@link TrainAdapterOptions}. */
export const trainDefaults = {
  format: "kohya",
  dtype: "F16",
  rank: 16,
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
  segments: 1,
  checkpointEvery: 100,
  threads: 2,
} as const;

/**
 * Stage: plain model folder and a folder of pictures -> LoRA file. Trains low-rank factors (Hu et al. 2021, arXiv
 * 2106.09685) on the UNet's chosen layers in ONNX Runtime. Goes on from the checkpoint `OUT.checkpoint` where a run with the
 * same settings and data left one; it is removed when the adapter is written. Same input, same bytes.
 * @throws InputError for folders that do not fit; the signal's reason on abort, after a checkpoint was written
 */
export async function trainAdapter(modelPath: string, given: TrainAdapterOptions): Promise<TrainAdapterResult> {
  const options = { ...trainDefaults, ...withoutUndefined(given) } as TrainAdapterOptions &
    Required<Omit<TrainAdapterOptions, "alpha" | "size" | "validation" | "signal" | OnEvents>>;
  const { rank, seed, batch, threads, signal } = options;
  const scale = (options.alpha ?? rank) / rank;
  const folder = await openModelFolder(modelPath);
  if (existsSync(join(folder.path, "slots.json")) || folder.denoiser !== "unet") {
    throw new InputError({
      what: folder.denoiser === "unet" ? "the model has adapter inputs already" : "only UNets can be trained",
      file: folder.path,
      fix: "Give the original model folder, as it was before quad expose.",
    });
  }
  const model = loadComponent(folder, "unet");
  const found = findLayers(model).layers;
  const layers = chooseLayers(found, options.layers);
  const channels = sampleChannels(model);
  const size = await pictureSize(folder.path, options.size);
  const encode = async (path: string, stage: string, flip: boolean) => {
    const { examples, uncaptioned } = await readTrainingFolder(path);
    if (uncaptioned.length > 0) {
      const names = `${uncaptioned.slice(0, 3).join(", ")}${uncaptioned.length > 3 ? ", ..." : ""}`;
      options.onWarning?.(`${uncaptioned.length} of ${examples.length} pictures in ${path} have no caption: ${names}`);
    }
    return encodeDataset(folder.path, examples, {
      channels,
      size,
      flip,
      ...(signal ? { signal } : {}),
      onProgress: (done, total) => options.onStage?.(stage, done, total),
    });
  };
  const dataset = await encode(options.pairs, "encoding", options.flip);
  const held = options.validation ? await encode(options.validation, "encoding validation", false) : null;

  options.onStage?.("building the training graph", 0, 1);
  const { height, width, tokens } = dataset;
  const graph = await buildAdapterGraph(model, layers, {
    ...{ rank, scale, batch, height, width, tokens },
    clipNorm: options.clipNorm,
    weightDecay: options.weightDecay,
    segments: options.segments,
  });
  const schedulerFile = join(folder.path, "scheduler", "scheduler_config.json");
  const scheduler = parseJsonFile(schedulerFile, await readFile(schedulerFile, "utf8"), z.looseObject({}));
  const batchOptions = { batch, seed, scheduler, schedulerFile, timestep: graph.timestep };
  const source = diffusionBatches(dataset, { ...batchOptions, captionDropout: options.captionDropout });
  const initial = initialFactors(graph.training.layout, graph.slots, seed);
  const { learningRate, steps, warmup, averageDecay } = options;
  const trained = { rank, batch, seed, scale, learningRate, steps, warmup, averageDecay, threads };
  const { weightDecay, clipNorm, captionDropout, segments, validateEvery } = options;
  const identity = hash([
    JSON.stringify({ ...trained, weightDecay, clipNorm, captionDropout, segments, validateEvery, scheduler }),
    graph.slots.map(({ name }) => name).join(),
    await readFile(componentFile(folder.path, "unet")),
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
      checkpoint: { path: checkpoint, every: options.checkpointEvery, identity },
      ...(measuring ? { evaluation: { every: validateEvery, evaluate } } : {}),
      ...(signal ? { signal } : {}),
      ...(options.onProgress ? { onProgress: options.onProgress } : {}),
    });
    const factors = adapterLayers("unet", graph.slots, graph.training.layout, result.parameters, scale);
    const modules = layers.map((layer) => toModule("unet", layer));
    const write = options.format === "peft" ? writePeft : writeKohya;
    await write(out, factors, modules, {
      dtype: options.dtype,
      metadata: {
        ss_steps: String(steps),
        ss_learning_rate: String(learningRate),
        ss_seed: String(seed),
        ss_num_train_images: String(dataset.examples.length),
        ss_total_batch_size: String(batch),
      },
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

type OnEvents = "onStage" | "onProgress" | "onWarning";

function withoutUndefined<Options extends object>(options: Options): Options {
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

/** What the UNet was trained with unless told otherwise; a multiple of the autoencoder's factor. */
async function pictureSize(
  folder: string,
  size: readonly [number, number] | undefined,
): Promise<{ width: number; height: number }> {
  const read = async <S extends z.ZodType>(path: string, schema: S): Promise<z.infer<S>> => {
    const file = join(folder, path);
    return parseJsonFile(file, existsSync(file) ? await readFile(file, "utf8") : "{}", schema);
  };
  const { block_out_channels: blocks } = await read("vae_decoder/config.json", vaeBlocksSchema);
  const factor = 2 ** (blocks.length - 1);
  if (size) {
    const [height, width] = size;
    if (height % factor === 0 && width % factor === 0) return { width, height };
    throw new InputError({
      what: "this size does not fit the model",
      expected: `multiples of ${factor}`,
      got: size.join("x"),
    });
  }
  const { sample_size: latent } = await read("unet/config.json", sampleSizeSchema);
  const [height, width] = typeof latent === "number" ? [latent, latent] : latent;
  return { width: width * factor, height: height * factor };
}

function* dataBytes({ examples, texts }: EncodedDataset): Generator<Uint8Array | string> {
  for (const { latents, conditioning, caption } of examples) {
    for (const { buffer, byteOffset, byteLength } of [latents, conditioning]) {
      yield new Uint8Array(buffer, byteOffset, byteLength);
    }
    yield caption;
  }
  for (const { buffer, byteOffset, byteLength } of texts.values()) yield new Uint8Array(buffer, byteOffset, byteLength);
}

function hash(parts: Iterable<Uint8Array | string>): string {
  const sum = createHash("sha256");
  for (const part of parts) sum.update(part);
  return sum.digest("hex");
}
