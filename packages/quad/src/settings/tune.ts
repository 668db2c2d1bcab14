import { z } from "zod";

/** How the shared profile's 8-bit ranges are trained; what is left out has the defaults. */
export const tuneSchema = z.strictObject({
  /** Training steps; 0 leaves the ranges as calibration chose them. */
  steps: z.int().min(0).default(0),
  /** Calls of the denoiser per step, all of one task, each with the rows of its guidance. */
  batch: z.int().positive().default(16),
  /** Highest learning rate, in logarithms of a scale: 0.005 changes a range by about half a percent per step. */
  learningRate: z.number().positive().default(0.005),
  warmup: z.int().min(0).default(10),
  /** Limit of the gradients' norm. Relative errors are small, and so are their gradients. */
  clipNorm: z.number().positive().default(0.01),
  /** Decay of the scales' moving average; 0 takes the scales as they are. */
  averageDecay: z.number().min(0).lt(1).default(0.95),
  /** Weight of the squared distance from full precision's predictions. */
  reconstruction: z.number().min(0).default(1),
  /** Weight of the same distance after classifier-free guidance. */
  guided: z.number().min(0).default(0.5),
  /** Share of each task's calibration pictures, at least one, that is kept out of training: the best ranges on them are taken. */
  validationShare: z.number().gt(0).lt(1).default(0.25),
  validateEvery: z.int().positive().default(25),
  checkpointEvery: z.int().positive().default(25),
  seed: z.int().nonnegative().default(0),
  /** Recompute activations in this many segments: less memory, more time. */
  segments: z.int().positive().default(1),
  /** CPU threads, part of what makes results repeatable. */
  threads: z.int().positive().default(2),
});
/** Settings for training the profile's ranges with their defaults filled in. */
export type TuneSettings = z.infer<typeof tuneSchema>;
/** Settings for training the profile's ranges as people write them. */
export type TuneSettingsInput = z.input<typeof tuneSchema>;
