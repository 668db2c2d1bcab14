import { existsSync } from "node:fs";
import { z } from "zod";
import { readRecord, writeRecord } from "../files/json.ts";
import { targetNames } from "../targets/index.ts";

const figuresSchema = z.strictObject({
  pictures: z.int().positive(),
  /** Mean over the pictures against full precision with the same noise, dB. Equal pictures count as 100. */
  psnr: z.number(),
  psnrMin: z.number(),
  /** Standard deviation over the pictures, dB. */
  psnrDeviation: z.number(),
  /** Mean, luma. */
  ssim: z.number(),
  /** Signal to noise of the denoiser's output on recorded calls, dB. */
  sqnr: z.number(),
  /** Quantization sensitivity score on recorded calls, nats. */
  qss: z.number(),
});
/** How one task fares: pictures against full precision, and the denoiser on recorded calls. */
export type Figures = z.infer<typeof figuresSchema>;

const rowSchema = z.strictObject({
  /** Hash of all that the figures depend on. */
  key: z.string(),
  name: z.string(),
  study: z.enum(["profiles", "everything"]),
  profile: z.enum(["own", "anchor", "unified"]),
  /** Differences from the configuration's policy. */
  policy: z.record(z.string(), z.unknown()),
  roundPhases: z.boolean(),
  /** Share of the layers whose inputs have 8 bits. */
  narrowLayers: z.number(),
  tasks: z.record(z.string(), figuresSchema),
  seconds: z.number(),
});
/** One way to quantize, and how every task fares with it. */
export type AblationRow = z.infer<typeof rowSchema>;

const ablationSchema = z.strictObject({
  format: z.literal("quad-ablation"),
  version: z.literal(1, { error: "unknown version: this program reads version 1" }),
  placement: z.enum(targetNames),
  /** Held-out pictures per task. */
  pictures: z.int().positive(),
  /** The task whose ranges the rows with `profile: anchor` share. */
  anchor: z.string(),
  rows: z.array(rowSchema),
});
/** `ablation.json`: end-to-end quality of many ways to quantize one configuration. */
export type Ablation = z.infer<typeof ablationSchema>;

/** Writes the table, atomically. */
export async function writeAblation(path: string, ablation: Ablation): Promise<void> {
  await writeRecord(path, ablationSchema.parse(ablation));
}

/** @throws InputError if the file holds something else; null if there is none */
export async function readAblation(path: string): Promise<Ablation | null> {
  return existsSync(path) ? readRecord(path, ablationSchema) : null;
}
