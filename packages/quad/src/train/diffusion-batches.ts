import { InputError } from "@quad-lora/base";
import { alphaSigma, parseSchedulerConfig, SeededRandom, type TensorData, targetWeights } from "@quad-lora/runtime";
import { timestepTensor } from "../model/timesteps.ts";
import { batchNames, type DenoiserGraph } from "./denoiser-graph.ts";
import type { EncodedDataset, EncodedExample } from "./encode-dataset.ts";
import type { BatchSource } from "./training-loop.ts";

export interface DiffusionBatchOptions {
  batch: number;
  /** Share of rows trained with the empty caption, which classifier-free guidance needs (Ho and Salimans 2022). */
  captionDropout: number;
  seed: number;
  /** Content of `scheduler_config.json`: alphas, and what the network predicts. */
  scheduler: unknown;
  schedulerFile?: string;
  timestep: DenoiserGraph["timestep"];
}

/**
 * Batches of the denoising objective (Ho et al. 2020, arXiv 2006.11239): latents at uniformly drawn time steps with normal
 * noise, and what the network should predict of them. Examples come in shuffled epochs.
 */
export function diffusionBatches(dataset: EncodedDataset, options: DiffusionBatchOptions): BatchSource {
  const { examples } = dataset;
  const order = shuffledEpochs(examples.length, options.seed);
  const fill = batchFiller(dataset, options);
  return (step, random) => {
    const rows = Array.from({ length: options.batch }, (_, row) => examples[order(step * options.batch + row)]);
    return fill(rows, random, () => random.uniform());
  };
}

/**
 * Fixed batches for measuring: every example once with time steps spread evenly, the same noise every time. The last batch
 * is filled up from the start.
 */
export function validationBatches(
  dataset: EncodedDataset,
  options: Omit<DiffusionBatchOptions, "captionDropout">,
): Readonly<Record<string, TensorData>>[] {
  const { examples } = dataset;
  const fill = batchFiller(dataset, { ...options, captionDropout: 0 });
  const random = new SeededRandom(options.seed);
  const count = Math.ceil(examples.length / options.batch);
  // Multiples of the golden ratio spread evenly over [0, 1) however many are taken.
  let drawn = 0;
  return Array.from({ length: count }, (_, index) => {
    const rows = Array.from(
      { length: options.batch },
      (_, row) => examples[(index * options.batch + row) % examples.length],
    );
    return fill(rows, random, () => (0.5 + drawn++ * 0.6180339887498949) % 1);
  });
}

/** Index of the n-th example drawn: each epoch is a permutation of its own, from the seed and the epoch's number. */
function shuffledEpochs(count: number, seed: number): (position: number) => number {
  let current = -1;
  let permutation: number[] = [];
  return (position) => {
    const epoch = Math.floor(position / count);
    if (epoch !== current) {
      current = epoch;
      const random = new SeededRandom(new SeededRandom(seed).word() + epoch);
      permutation = Array.from({ length: count }, (_, index) => index);
      for (let i = count - 1; i > 0; i--) {
        const j = random.integer(i + 1);
        [permutation[i], permutation[j]] = [permutation[j], permutation[i]];
      }
    }
    return permutation[position % count];
  };
}

function batchFiller(dataset: EncodedDataset, options: DiffusionBatchOptions) {
  const { batch, captionDropout, timestep } = options;
  const { num_train_timesteps: trainTimesteps, prediction_type: predicts } = parseSchedulerConfig(
    options.scheduler,
    options.schedulerFile,
  );
  const levels = alphaSigma(options.scheduler, options.schedulerFile ? { file: options.schedulerFile } : {});
  const { latentChannels, height, width, tokens, textWidth } = dataset;
  const plane = height * width;
  const latentSize = latentChannels * plane;
  const rowSize = latentSize + dataset.examples[0].conditioning.length;
  const textSize = tokens * textWidth;
  if (dataset.examples.some(({ conditioning }) => conditioning.length !== rowSize - latentSize)) {
    throw new InputError({ what: "the examples are conditioned in different ways" });
  }
  // One time step for all rows where the graph takes only one.
  const perRow = timestep?.dims[0] === batch && timestep.dims.length === 1;

  const sample = new Float32Array(batch * rowSize);
  const target = new Float32Array(batch * latentSize);
  const text = new Float32Array(batch * textSize);
  const times = new Float64Array(perRow ? batch : 1);
  return (rows: readonly EncodedExample[], random: SeededRandom, position: () => number) => {
    for (const [row, { latents, conditioning, caption }] of rows.entries()) {
      if (perRow || row === 0) times[row] = Math.floor(position() * trainTimesteps);
      const { alpha, sigma } = levels(times[perRow ? row : 0]);
      const weights = targetWeights(predicts, alpha, sigma);
      const isDropped = captionDropout > 0 && random.uniform() < captionDropout;
      for (let i = 0; i < latentSize; i++) {
        const noise = random.normal();
        sample[row * rowSize + i] = alpha * latents[i] + sigma * noise;
        target[row * latentSize + i] = weights.original * latents[i] + weights.noise * noise;
      }
      sample.set(conditioning, row * rowSize + latentSize);
      text.set(dataset.texts.get(isDropped ? "" : caption)!, row * textSize);
    }
    return {
      [batchNames.sample]: floats(sample, [batch, rowSize / plane, height, width]),
      ...(timestep ? { [batchNames.timestep]: timestepTensor(timestep, times) } : {}),
      [batchNames.text]: floats(text, [batch, tokens, textWidth]),
      [batchNames.target]: floats(target, [batch, latentChannels, height, width]),
    };
  };
}

/** A copy: batches are kept by validation, and buffers are filled again. */
function floats(data: Float32Array, dims: number[]): TensorData {
  return { type: "float32", dims, data: data.slice() };
}
