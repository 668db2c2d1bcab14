import { z } from "zod";
import { readRecord, writeRecord } from "../files/json.ts";
import { denoiserShapeSchema } from "../model/denoiser.ts";
import type { Encoding } from "../quantization/index.ts";
import { policySchema } from "../settings/policy.ts";
import { targetNames } from "../targets/index.ts";

const bitsSchema = z.union([z.literal(8), z.literal(16)]);

const scoresSchema = z.strictObject({
  /** Quantization sensitivity score on the task's own profile, nats. */
  qss: z.number(),
  /** Signal to quantization noise on the task's own profile, dB. */
  sqnr: z.number(),
});

const profileSchema = z.strictObject({
  format: z.literal("quad-profile"),
  version: z.literal(1, { error: "unknown version: this program reads version 1" }),
  component: z.string(),
  /** SHA-256 of the exposed graph that the profile belongs to. */
  graph: z.string(),
  placement: z.enum(targetNames),
  /** What the graph was fixed to. */
  shape: denoiserShapeSchema,
  /** The largest rank among the adapters: that of a graph of fixed rank, and of the padded factors that scores were taken with. */
  rank: z.int().positive(),
  policy: policySchema,
  /** How the shared encodings were chosen. */
  strategy: z.strictObject({
    kind: z.enum(["anchor", "unified", "mixed"]),
    /** The task whose ranges all share. */
    anchor: z.string().nullable(),
    reason: z.string(),
  }),
  /** Sensitivity of every task, each on its own profile: the table the choice was made from. */
  scores: z.record(z.string(), scoresSchema),
  /** Every task on the shared profile, for the strategies that were possible. */
  shared: z.record(z.string(), z.record(z.string(), scoresSchema)),
  /** Layers whose inputs have 8 bits. */
  narrowLayers: z.array(z.string()),
  /** Signal to quantization noise with only this layer's inputs at 8 bits, dB, where it was measured. */
  layerSensitivity: z.record(z.string(), z.number()),
  /** Unsigned affine encodings of activations by point: a value's name, or `LAYER#INPUT`. */
  points: z.record(z.string(), z.strictObject({ bits: bitsSchema, scale: z.number().positive(), zeroPoint: z.int() })),
  /** Scales of the adapter factors by slot. */
  slots: z.record(z.string(), z.strictObject({ a: z.number().positive(), b: z.number().positive() })),
  /** What training the scales of the 8-bit points gained, where it was done; the scores are of the profile before it. */
  tuned: z
    .strictObject({
      steps: z.int().positive(),
      /** Step whose scales were best; 0: those that calibration chose. */
      bestStep: z.int().min(0),
      /** Signal to noise of the predictions on the pictures kept out of training, dB, by task. */
      tasks: z.record(z.string(), z.strictObject({ sqnrBefore: z.number(), sqnrAfter: z.number() })),
    })
    .optional(),
});

/** The shared quantization profile: the encodings that every adapter of a bundle uses, and why these. */
export type Profile = z.infer<typeof profileSchema>;

/** Writes a profile, atomically. Throws where it does not fit the format. */
export async function writeProfile(path: string, profile: Profile): Promise<void> {
  await writeRecord(path, profileSchema.parse(profile));
}

/** @throws InputError if the file is missing or no profile of this version */
export function readProfile(path: string): Promise<Profile> {
  return readRecord(path, profileSchema, "a profile written by quad profile", "Run quad profile first.");
}

/** The encoding of one point as the quantization functions take it. */
export function pointEncoding(point: Profile["points"][string]): Encoding {
  return {
    bits: point.bits,
    signed: false,
    symmetric: false,
    scale: Float32Array.of(point.scale),
    zeroPoint: Int32Array.of(point.zeroPoint),
  };
}
