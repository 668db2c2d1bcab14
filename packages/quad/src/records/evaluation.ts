import { z } from "zod";
import { readRecord, writeRecord } from "../files/json.ts";

const pictureMetricsSchema = z.strictObject({
  /** dB over RGB; a picture that is equal counts as 100. */
  psnr: z.number(),
  /** Luma. */
  ssim: z.number(),
  /** Luma, over as many of the five scales as the picture's size allows: see the evaluation's `msssimScales`. */
  msssim: z.number(),
  ssimulacra2: z.number(),
  /** With `--lpips`. */
  lpips: z.number().optional(),
  /** With `--clip-image` and `--clip-text`: picture and prompt. */
  clipScore: z.number().optional(),
  /** With `--clip-image`: cosine of the picture's and the full-precision picture's embeddings. */
  clipSimilarity: z.number().optional(),
  /** With both CLIP networks, for cases with a picture and a `sourcePrompt`. */
  clipDirection: z.number().optional(),
});
/** How one picture compares with its full-precision counterpart. */
export type PictureMetrics = z.infer<typeof pictureMetricsSchema>;
export type MetricName = keyof PictureMetrics;

const spreadSchema = z.strictObject({ mean: z.number(), worst: z.number() });

const summarySchema = z.strictObject({
  pictures: z.int(),
  /** Mean over the pictures, and the worst of them. */
  metrics: z.record(z.string(), spreadSchema),
  /** Fréchet distance of the model's own VAE features to those of the full-precision pictures; null for fewer than two. */
  frechetVae: z.number().nullable(),
  /** With `--inception`. */
  fid: z.number().nullable().optional(),
});
export type ResultSummary = z.infer<typeof summarySchema>;

const resultSchema = z.strictObject({
  /** Paths relative to the evaluation's folder, in the order of the cases. */
  pictures: z.array(z.string()),
  /** By picture; empty for the reference. */
  metrics: z.array(pictureMetricsSchema),
  summary: summarySchema.nullable(),
});
export type VariantResult = z.infer<typeof resultSchema>;

const caseSchema = z.strictObject({
  prompt: z.string(),
  negativePrompt: z.string().optional(),
  seed: z.int(),
  width: z.int(),
  height: z.int(),
  /** The picture that the task got, with what is to be painted in grey. */
  input: z.string().optional(),
});

const taskSchema = z.strictObject({
  task: z.string(),
  description: z.string().optional(),
  /** Adapters it uses, with their strengths. */
  adapters: z.record(z.string(), z.number()),
  steps: z.int(),
  guidance: z.number(),
  cases: z.array(caseSchema),
  /** By variant; a variant that cannot be had for this task is left out. */
  results: z.record(z.string(), resultSchema),
});
export type TaskEvaluation = z.infer<typeof taskSchema>;

const variantSchema = z.strictObject({
  name: z.string(),
  label: z.string(),
  description: z.string(),
  /** `reference`: what all are compared with; `candidate`: what is evaluated; `simulated`: for comparison. */
  kind: z.enum(["reference", "candidate", "simulated"]),
});
export type VariantInfo = z.infer<typeof variantSchema>;

/** Noise power over signal power of the denoiser's output, per cause: 0.001 is 30 dB. */
export const noiseSchema = z.strictObject({
  /** All causes together. */
  total: z.number(),
  /** Rounding of the base's weights. */
  weights: z.number(),
  /** Rounding of the adapter's factors. */
  adapter: z.number(),
  /** Rounding of values between the layers; null where the target leaves them float. */
  between: z.number().nullable(),
  /** Rounding and clipping of one layer's inputs, everything else exact. */
  layers: z.record(z.string(), z.number()),
});
export type TaskNoise = z.infer<typeof noiseSchema>;

const rangeSchema = z.strictObject({
  layer: z.string(),
  point: z.string(),
  bits: z.int(),
  /** What the profile's grid spans. */
  low: z.number(),
  high: z.number(),
  /** By task and group of time steps, early ones first: what was seen, and which share of it the grid clips. */
  tasks: z.record(z.string(), z.array(z.strictObject({ min: z.number(), max: z.number(), clipped: z.number() }))),
});
export type PointRange = z.infer<typeof rangeSchema>;

const ablationSchema = z.strictObject({
  /** Share of layers whose inputs have 8 bits, 0 to 1; null for 8 bits everywhere, between the layers too. */
  share: z.number().nullable(),
  narrowLayers: z.int(),
  tasks: z.record(z.string(), summarySchema),
});
export type AblationRow = z.infer<typeof ablationSchema>;

const sizeSchema = z.strictObject({
  /** All files but the adapters, bytes. */
  base: z.number(),
  adapters: z.record(z.string(), z.number()),
});

const evaluationSchema = z.strictObject({
  format: z.literal("quad-evaluation"),
  version: z.literal(1, { error: "unknown version: this program reads version 1" }),
  /** When it was made, ISO 8601. */
  created: z.string(),
  reference: z.strictObject({ path: z.string(), storage: sizeSchema }),
  candidate: z.strictObject({ path: z.string(), kind: z.enum(["bundle", "folder"]), storage: sizeSchema }),
  /** The reference first, in the order of a contact sheet. */
  variants: z.array(variantSchema),
  tasks: z.array(taskSchema),
  /** How many of MS-SSIM's five scales fitted the pictures. */
  msssimScales: z.int(),
  /** What each layer costs each task, by task; null where it was not measured. */
  noise: z.strictObject({ calls: z.int(), tasks: z.record(z.string(), noiseSchema) }).nullable(),
  /** Ranges of layer inputs under the profile; null without observations. */
  ranges: z.strictObject({ stepGroups: z.int(), points: z.array(rangeSchema) }).nullable(),
  ablation: z.array(ablationSchema),
  /** What was left out, and what has to be known to read the figures. */
  notes: z.array(z.string()),
  machine: z.strictObject({ cpu: z.string(), cores: z.int(), memoryGB: z.number(), platform: z.string() }),
  versions: z.record(z.string(), z.string()),
});
/** `evaluation.json`: what `quad eval` measured. */
export type Evaluation = z.infer<typeof evaluationSchema>;

/** Largest PSNR that is written: that of a picture which is equal. */
export const equalPsnr = 100;

/** For these less is better; for all other metrics more is. */
export const lessIsBetter: ReadonlySet<string> = new Set(["lpips", "frechetVae", "fid"]);

export async function writeEvaluation(path: string, evaluation: Evaluation): Promise<void> {
  await writeRecord(path, evaluationSchema.parse(evaluation));
}

/** @throws InputError if the file is missing or no evaluation of this version */
export function readEvaluation(path: string): Promise<Evaluation> {
  return readRecord(path, evaluationSchema, "an evaluation written by quad eval", "Run quad eval first.");
}
