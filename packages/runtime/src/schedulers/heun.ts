import * as z from "zod/mini";
import {
  betaOptions,
  clipOptions,
  clipRange,
  defineScheduler,
  type OptionsOf,
  type ScheduleRequest,
  sigmaOptions,
  spacingOptions,
} from "./definition.ts";
import { explodingOriginalWeights } from "./euler.ts";
import { betaLevels, createNoiseSchedule, variancePreserving } from "./noise-schedule.ts";
import { Sampler, type Step } from "./sampler.ts";
import { combine, History, type Level } from "./scheduler.ts";
import { sigmaInitNoise, sigmaSteps } from "./timesteps.ts";

const options = {
  ...betaOptions,
  ...clipOptions(false),
  ...spacingOptions("linspace"),
  ...sigmaOptions,
  beta_start: z._default(betaOptions.beta_start.def.innerType, 0.00085),
  beta_end: z._default(betaOptions.beta_end.def.innerType, 0.012),
};

type Config = OptionsOf<typeof options>;

export const heun = defineScheduler({
  classes: ["HeunDiscreteScheduler"],
  options,
  levels: betaLevels,
  create: (config, request) => new HeunScheduler(config, request),
});

/**
 * Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 1.
 * Even evaluations take an Euler step, odd ones correct it; the last step to zero noise stays uncorrected.
 * A trajectory that starts at an odd evaluation has nothing to correct there, and the sample passes unchanged.
 */
class HeunScheduler extends Sampler {
  override readonly order = 2;
  readonly #sigmas: Float64Array;
  readonly #clipRange: number;
  /** Derivative (newest) and sample at the start of the step. */
  readonly #start = new History(2);

  constructor(config: Config, { steps }: ScheduleRequest) {
    const { timesteps, sigmas } = sigmaSteps(config, createNoiseSchedule(config, true), steps);
    const evaluations = timesteps.flatMap((timestep, step) => (step === 0 ? [timestep] : [timestep, timestep]));
    super(config.prediction_type, evaluations, sigmaInitNoise(config, sigmas));
    this.#sigmas = sigmas;
    this.#clipRange = clipRange(config);
  }

  protected level(index: number): Level {
    return { alpha: 1, sigma: this.#sigmas[Math.ceil(index / 2)] };
  }

  protected override inputScale(index: number): number {
    return variancePreserving(this.level(index).sigma).alpha;
  }

  protected advance(step: Step): void {
    const { index, sample, out } = step;
    this.#start.enter(index, sample.length);
    if (index % 2 === 0) this.#predict(step);
    else if (this.#start.count === 0) out.set(sample);
    else this.#correct(step);
  }

  #predict(step: Step): void {
    const { index, sample, out } = step;
    const start = this.#start.push();
    const derivative = this.#start.push();
    start.set(sample);
    this.#derivative(step, derivative);
    combine(start, 1, derivative, this.#sigmas[index / 2 + 1] - this.#sigmas[index / 2], out);
  }

  #correct(step: Step): void {
    const { index, out } = step;
    const start = this.#start.at(1);
    const derivative = this.#start.at(0);
    const halfStep = (this.#sigmas[(index + 1) / 2] - this.#sigmas[(index - 1) / 2]) / 2;
    combine(start, 1, derivative, halfStep, start);
    this.#derivative(step, derivative);
    combine(start, 1, derivative, halfStep, out);
  }

  /** `(x - x0) / sigma` */
  #derivative({ modelOutput, index, sample }: Step, out: Float32Array): void {
    const { sigma } = this.level(index);
    const weights = explodingOriginalWeights(this.predictionType, sigma);
    const range = this.#clipRange;
    for (let i = 0; i < out.length; i++) {
      const original = weights.sample * sample[i] + weights.output * modelOutput[i];
      out[i] = (sample[i] - Math.min(Math.max(original, -range), range)) / sigma;
    }
  }
}
