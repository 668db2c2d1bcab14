import * as z from "zod/mini";
import { AlphaSampler } from "./alpha-sampler.ts";
import { consistencyOptions, distilledTimesteps } from "./consistency.ts";
import {
  clipOptions,
  clipRange,
  defineScheduler,
  type OptionsOf,
  positive,
  type ScheduleRequest,
  thresholdingKeys,
} from "./definition.ts";
import { betaLevels } from "./noise-schedule.ts";
import type { Step } from "./sampler.ts";
import { combine, originalWeights } from "./scheduler.ts";

const options = {
  ...consistencyOptions,
  ...clipOptions(false),
  timestep_scaling: z._default(positive, 10),
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
class LcmScheduler extends AlphaSampler<Config> {
  constructor(config: Config, request: ScheduleRequest) {
    super(config, distilledTimesteps(config, request), request.file);
  }

  protected advance({ modelOutput, index, sample, out, noise }: Step): void {
    const drawn = index < this.timesteps.length - 1 ? noise() : undefined;
    const { alpha, sigma } = this.level(index);
    const weights = originalWeights(this.predictionType, alpha, sigma);
    const range = clipRange(this.config);
    const scaled = this.timesteps[index] * this.config.timestep_scaling;
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
