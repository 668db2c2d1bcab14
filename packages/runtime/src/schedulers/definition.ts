import { z } from "zod";
import type { Level } from "./noise-schedule.ts";
import type { PredictionType, Scheduler } from "./scheduler.ts";

/** A configuration that has been checked against a definition's options. */
export type OptionsOf<Shape extends z.ZodRawShape> = z.output<z.ZodObject<Shape>>;

/** One trajectory to make. */
export interface ScheduleRequest {
  /** Sampling steps, from 1 to the number of training timesteps. */
  readonly steps: number;
  /** Names the configuration in errors. */
  readonly file?: string;
  /** Tokens that a transformer sees the picture as; flow schedulers with `use_dynamic_shifting` need it. */
  readonly imageTokens?: number;
  /** For flow schedulers: noise levels before shifting, descending in (0, 1], in place of evenly spaced ones. */
  readonly sigmas?: readonly number[];
}

/** All that there is to say about one scheduler; a file of its own exports it, and `index.ts` lists it. */
export interface SchedulerDefinition<Shape extends z.ZodRawShape = z.ZodRawShape> {
  /** Values of `_class_name` in diffusers that it implements. */
  readonly classes: readonly string[];
  /** Keys of the configuration that have an effect: the values that are implemented, and the defaults of the class. */
  readonly options: Shape & { num_train_timesteps: z.ZodType<number>; prediction_type: z.ZodType<PredictionType> };
  /** Keys that the class has and that do nothing here, because what they belong to is refused. */
  readonly inert?: readonly string[];
  /** Noise levels by training timestep; outside the schedule the function throws a RangeError. */
  levels(config: OptionsOf<Shape>): (timestep: number) => Level;
  /** @throws InputError when the steps, or options together, do not go with the configuration */
  create(config: OptionsOf<Shape>, request: ScheduleRequest): Scheduler;
}

/** Checks a definition against its own options, and lets it stand in a list with others. */
export function defineScheduler<Shape extends z.ZodRawShape>(
  definition: SchedulerDefinition<Shape>,
): SchedulerDefinition {
  return definition as unknown as SchedulerDefinition;
}

const positive = z.number().positive();

/** Every scheduler has these. */
export const trainingOptions = {
  num_train_timesteps: z.number().int().min(2).default(1000),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample", "flow_prediction"]).default("epsilon"),
};

/** The training schedule of variance-preserving processes, with diffusers' most common defaults. */
export const betaOptions = {
  ...trainingOptions,
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]).default("epsilon"),
  beta_start: positive.lt(1).default(0.0001),
  beta_end: positive.lt(1).default(0.02),
  beta_schedule: z.enum(["linear", "scaled_linear", "squaredcos_cap_v2"]).default("linear"),
  /** One beta per training timestep; replaces `beta_start`, `beta_end` and `beta_schedule`. */
  trained_betas: z.array(z.number().min(0).max(1)).optional(),
};

export const zeroSnrOptions = { rescale_betas_zero_snr: z.boolean().default(false) };

/** @param spacing - the default of the class */
export function spacingOptions(spacing: "leading" | "linspace" | "trailing") {
  return {
    timestep_spacing: z.enum(["leading", "linspace", "trailing"]).default(spacing),
    /** Added to every timestep of the "leading" spacing. */
    steps_offset: z.number().int().min(0).default(0),
  };
}

/** @param clips - the default of the class */
export function clipOptions(clips: boolean) {
  return { clip_sample: z.boolean().default(clips), clip_sample_range: positive.default(1) };
}

/** @param toOne - the default of the class */
export function lastAlphaOptions(toOne: boolean) {
  /** Whether the cumulative alpha after the last step is 1, or that of timestep 0. */
  return { set_alpha_to_one: z.boolean().default(toOne) };
}

/** Noise levels spread in another way than the timesteps' own. */
export const sigmaOptions = {
  use_karras_sigmas: z.boolean().default(false),
  use_exponential_sigmas: z.boolean().default(false),
  /** Bounds of such sigmas; without them, those of the schedule. */
  sigma_min: positive.optional(),
  sigma_max: positive.optional(),
};

/** DPM-Solver++ and UniPC: multistep solvers in the log signal-to-noise ratio, of diffusion and of flow matching. */
export const solverOptions = {
  ...betaOptions,
  ...zeroSnrOptions,
  ...spacingOptions("linspace"),
  ...sigmaOptions,
  prediction_type: trainingOptions.prediction_type,
  solver_order: z.number().int().min(1).max(3).default(2),
  solver_type: z.enum(["midpoint", "heun", "logrho", "bh1", "bh2"]).optional(),
  lower_order_final: z.boolean().default(true),
  /**
   * Noise level after the last step. Diffusers from 0.25 on always writes this key, so a file without it comes
   * from an older version, which meant "sigma_min".
   */
  final_sigmas_type: z.enum(["zero", "sigma_min"]).optional(),
  /** Noise levels of flow matching, whose states are `(1 - sigma) x0 + sigma noise`. */
  use_flow_sigmas: z.boolean().default(false),
  flow_shift: positive.default(1),
};

/** Models that were distilled to few steps: LCM and TCD. */
export const consistencyOptions = {
  ...betaOptions,
  ...zeroSnrOptions,
  beta_start: positive.lt(1).default(0.00085),
  beta_end: positive.lt(1).default(0.012),
  beta_schedule: betaOptions.beta_schedule.unwrap().default("scaled_linear"),
  /** Steps of the distillation, among which the timesteps are chosen. */
  original_inference_steps: z.number().int().min(1).default(50),
};

/** For {@link SchedulerDefinition.inert}: clipping by quantiles. */
export const thresholdingKeys = ["dynamic_thresholding_ratio", "sample_max_value"];

/** An option of which no value is implemented. */
export const notImplemented = z.undefined().optional();
