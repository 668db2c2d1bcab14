import * as z from "zod/mini";
import {
  clipOptions,
  consistencyOptions,
  defineScheduler,
  type OptionsOf,
  type ScheduleRequest,
  thresholdingKeys,
} from "./definition.ts";
import {
  betaLevels,
  createNoiseSchedule,
  type Level,
  levelOf,
  type NoiseSchedule,
  refuseEpsilonAtZeroSnr,
} from "./noise-schedule.ts";
import { Sampler } from "./sampler.ts";
import { combine, originalWeights } from "./scheduler.ts";
import { distilledTimesteps } from "./timesteps.ts";

const options = {
  ...consistencyOptions,
  ...clipOptions(false),
  timestep_scaling: z._default(z.number().check(z.positive()), 10),
};

type Config = OptionsOf<typeof options>;

export const lcm = defineScheduler({
  classes: ["LCMScheduler"],
  options,
  inert: thresholdingKeys,
  levels: betaLevels,
  create: (config, request) => new LcmScheduler(config, request),
});

/** Standard deviation of the data in the boundary condition, as the consistency models were trained. */
const sigmaData = 0.5;

/**
 * Luo et al., "Latent Consistency Models" (2023), algorithm 3: predicts x0, then adds new noise for the next timestep.
 * Every step but the last needs noise. The timesteps are chosen from the `original_inference_steps` of the distillation.
 */
class LcmScheduler extends Sampler {
  readonly #config: Config;
  readonly #schedule: NoiseSchedule;

  constructor(config: Config, { steps, file }: ScheduleRequest) {
    refuseEpsilonAtZeroSnr(config, file);
    super(config.prediction_type, distilledTimesteps(config, steps, file));
    this.#config = config;
    this.#schedule = createNoiseSchedule(config, false);
  }

  protected level(index: number): Level {
    return levelOf(this.#schedule.alphasCumprod[this.timesteps[index]]);
  }

  protected advance(
    modelOutput: Float32Array,
    index: number,
    sample: Float32Array,
    out: Float32Array,
    noise: () => Float32Array,
  ): void {
    const drawn = index < this.timesteps.length - 1 ? noise() : undefined;
    const { alpha, sigma } = this.level(index);
    const weights = originalWeights(this.predictionType, alpha, sigma);
    const range = this.#config.clip_sample ? this.#config.clip_sample_range : Number.POSITIVE_INFINITY;
    const scaled = this.timesteps[index] * this.#config.timestep_scaling;
    const skip = sigmaData ** 2 / (scaled ** 2 + sigmaData ** 2);
    const keep = scaled / Math.sqrt(scaled ** 2 + sigmaData ** 2);
    for (let i = 0; i < out.length; i++) {
      const original = weights.sample * sample[i] + weights.output * modelOutput[i];
      out[i] = keep * Math.min(Math.max(original, -range), range) + skip * sample[i];
    }
    if (!drawn) return;
    const next = this.level(index + 1);
    combine(out, next.alpha, drawn, next.sigma, out);
  }
}
