import { createHash } from "node:crypto";
import type { Model } from "@quad-lora/onnx";
import type { EncodedDataset } from "./encode-dataset.ts";
import type { CompleteOptions } from "./options.ts";

/** Pictures and captions as the training graph takes them. */
export interface TrainingData {
  train: EncodedDataset;
  /** Kept out of training. */
  held: EncodedDataset | null;
}

/**
 * What tells runs apart: everything that the result depends on.
 * @param trainee - what is trained, as the graph's segments and whatever else tells graphs and start values apart
 */
export function identityOf(
  options: CompleteOptions,
  trainee: { segments: number; parts: readonly string[] },
  scheduler: unknown,
  { train, held }: TrainingData,
): string {
  const { batch, seed, learningRate, steps, warmup, averageDecay, threads, weightDecay, clipNorm } = options;
  const { captionDropout, validateEvery } = options;
  const settings = { batch, seed, learningRate, steps, warmup, averageDecay, threads, weightDecay, clipNorm };
  return hashOf([
    JSON.stringify({ ...settings, captionDropout, validateEvery, scheduler, segments: trainee.segments }),
    ...trainee.parts,
    ...dataBytes(train),
    ...(held ? dataBytes(held) : []),
  ]);
}

/** The graph's weights, wherever they lie. */
export function* constantsOf({ graph }: Model): Generator<Uint8Array | string> {
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
