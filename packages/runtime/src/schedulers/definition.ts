import * as z from "zod/mini";
import type { Level, PredictionType, Scheduler } from "./scheduler.ts";

/** A configuration that has been checked against a definition's options. */
export type OptionsOf<Shape extends z.core.$ZodShape> = z.output<z.ZodMiniObject<Shape>>;

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
export interface SchedulerDefinition<Shape extends z.core.$ZodShape = z.core.$ZodShape> {
  /** Values of `_class_name` in diffusers that it implements. */
  readonly classes: readonly string[];
  /** Keys of the configuration that have an effect: the values that are implemented, and the defaults of the class. */
  readonly options: Shape & {
    num_train_timesteps: z.core.$ZodType<number>;
    prediction_type: z.core.$ZodType<PredictionType>;
  };
  /** Keys that the class has and that do nothing here, because what they belong to is refused. */
  readonly inert?: readonly string[];
  /** Noise levels by training timestep; outside the schedule the function throws a RangeError. */
  levels(config: OptionsOf<Shape>): (timestep: number) => Level;
  /** @throws InputError when the steps, or options together, do not go with the configuration */
  create(config: OptionsOf<Shape>, request: ScheduleRequest): Scheduler;
}

/** Checks a definition against its own options, and lets it stand in a list with others. */
export function defineScheduler<Shape extends z.core.$ZodShape>(
  definition: SchedulerDefinition<Shape>,
): SchedulerDefinition {
  return definition as unknown as SchedulerDefinition;
}

export const positive = z.number().check(z.positive());

/** Every scheduler has these. */
export const trainingOptions = {
  num_train_timesteps: z._default(z.int().check(z.minimum(2), z.maximum(100_000)), 1000),
  prediction_type: z._default(z.enum(["epsilon", "v_prediction", "sample", "flow_prediction"]), "epsilon"),
};

/** The training schedule of variance-preserving processes, with diffusers' most common defaults. */
export const betaOptions = {
  ...trainingOptions,
  prediction_type: z._default(z.enum(["epsilon", "v_prediction", "sample"]), "epsilon"),
  beta_start: z._default(positive.check(z.lt(1)), 0.0001),
  beta_end: z._default(positive.check(z.lt(1)), 0.02),
  beta_schedule: z._default(z.enum(["linear", "scaled_linear", "squaredcos_cap_v2"]), "linear"),
  /** One beta per training timestep; replaces `beta_start`, `beta_end` and `beta_schedule`. */
  trained_betas: z.optional(z.array(z.number().check(z.minimum(0), z.maximum(1)))),
};

export const zeroSnrOptions = { rescale_betas_zero_snr: z._default(z.boolean(), false) };

/** @param spacing - the default of the class */
export function spacingOptions(spacing: "leading" | "linspace" | "trailing") {
  return {
    timestep_spacing: z._default(z.enum(["leading", "linspace", "trailing"]), spacing),
    /** Added to every timestep of the "leading" spacing. */
    steps_offset: z._default(z.int().check(z.minimum(0)), 0),
  };
}

/** @param clips - the default of the class */
export function clipOptions(clips: boolean) {
  return { clip_sample: z._default(z.boolean(), clips), clip_sample_range: z._default(positive, 1) };
}

/** The largest absolute value that {@link clipOptions} leave to predictions of x0. */
export function clipRange(config: OptionsOf<ReturnType<typeof clipOptions>>): number {
  return config.clip_sample ? config.clip_sample_range : Number.POSITIVE_INFINITY;
}

/** @param toOne - the default of the class */
export function lastAlphaOptions(toOne: boolean) {
  /** Whether the cumulative alpha after the last step is 1, or that of timestep 0. */
  return { set_alpha_to_one: z._default(z.boolean(), toOne) };
}

/** Noise levels spread in another way than the timesteps' own. */
export const sigmaOptions = {
  use_karras_sigmas: z._default(z.boolean(), false),
  use_exponential_sigmas: z._default(z.boolean(), false),
  /** Bounds of such sigmas; without them, those of the schedule. */
  sigma_min: z.optional(positive),
  sigma_max: z.optional(positive),
};

/** For {@link SchedulerDefinition.inert}: clipping by quantiles. */
export const thresholdingKeys = ["dynamic_thresholding_ratio", "sample_max_value"];

/** An option of which no value is implemented. */
export const notImplemented = z.optional(z.undefined());
