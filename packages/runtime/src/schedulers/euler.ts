import * as z from "zod/mini";
import {
  betaOptions,
  defineScheduler,
  type OptionsOf,
  type ScheduleRequest,
  sigmaOptions,
  spacingOptions,
  zeroSnrOptions,
} from "./definition.ts";
import { betaLevels, createNoiseSchedule, variancePreserving } from "./noise-schedule.ts";
import { Sampler, type Step } from "./sampler.ts";
import { combine, type Level, originalWeights, type PredictionType, type PredictionWeights } from "./scheduler.ts";
import { sigmaInitNoise, sigmaSteps } from "./timesteps.ts";

const options = {
  ...betaOptions,
  ...zeroSnrOptions,
  ...spacingOptions("linspace"),
  ...sigmaOptions,
  /** Noise level after the last step: none, or the schedule's lowest. */
  final_sigmas_type: z._default(z.enum(["zero", "sigma_min"]), "zero"),
  interpolation_type: z._default(z.literal("linear"), "linear"),
  timestep_type: z._default(z.literal("discrete"), "discrete"),
};

export const euler = defineScheduler({
  classes: ["EulerDiscreteScheduler"],
  options,
  levels: betaLevels,
  create: (config, request) => new EulerScheduler(config, request),
});

/** Weights for x0 when the sample is `x0 + sigma * noise`, so the variance-preserving one is smaller by alpha. */
export function explodingOriginalWeights(type: PredictionType, sigma: number): PredictionWeights {
  const preserving = variancePreserving(sigma);
  const weights = originalWeights(type, preserving.alpha, preserving.sigma);
  return { sample: weights.sample * preserving.alpha, output: weights.output };
}

/** What a step of Euler's method needs. */
type Config = Omit<OptionsOf<typeof options>, "final_sigmas_type" | "interpolation_type" | "timestep_type"> & {
  final_sigmas_type?: "zero" | "sigma_min";
};

/**
 * Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 2 without
 * churn and without the second-order correction.
 */
export class EulerScheduler extends Sampler {
  protected readonly sigmas: Float64Array;

  constructor(config: Config, { steps }: ScheduleRequest) {
    const { timesteps, sigmas } = sigmaSteps(config, createNoiseSchedule(config, true), steps);
    super(config.prediction_type, timesteps, sigmaInitNoise(config, sigmas));
    this.sigmas = sigmas;
  }

  protected level(index: number): Level {
    return { alpha: 1, sigma: this.sigmas[index] };
  }

  protected override inputScale(index: number): number {
    return variancePreserving(this.sigmas[index]).alpha;
  }

  protected advance(step: Step): void {
    this.descend(step, this.sigmas[step.index + 1]);
  }

  /** `x + (x - x0) / sigma * (next - sigma)` */
  protected descend({ modelOutput, index, sample, out }: Step, next: number): void {
    const sigma = this.sigmas[index];
    const shrink = next / sigma;
    const weights = explodingOriginalWeights(this.predictionType, sigma);
    combine(sample, shrink + (1 - shrink) * weights.sample, modelOutput, (1 - shrink) * weights.output, out);
  }
}
