import * as z from "zod/mini";
import { AlphaSampler } from "./alpha-sampler.ts";
import { consistencyOptions, distilledTimesteps } from "./consistency.ts";
import { defineScheduler, type OptionsOf, type ScheduleRequest, thresholdingKeys } from "./definition.ts";
import { betaLevels, levelOf } from "./noise-schedule.ts";
import type { Step } from "./sampler.ts";
import { combine, noiseWeights, originalWeights } from "./scheduler.ts";

const options = {
  ...consistencyOptions,
  clip_sample: z._default(z.literal(false), false),
  /**
   * The paper's gamma: from 0, no noise, to 1, as much as LCM adds. diffusers takes it from the call, with the same default;
   * Hyper-SD asks for up to 1.
   */
  eta: z._default(z.number().check(z.minimum(0), z.maximum(1)), 0),
};

type Config = OptionsOf<typeof options>;

export const tcd = defineScheduler({
  classes: ["TCDScheduler"],
  options,
  inert: thresholdingKeys,
  levels: betaLevels,
  create: (config, request) => new TcdScheduler(config, request),
});

/**
 * Zheng et al., "Trajectory Consistency Distillation" (2024), algorithm 4: jumps to a timestep `(1 - eta) next` along the
 * trajectory, and back up to the next one with new noise. The timesteps are LCM's; the last jump ends at timestep 0.
 */
class TcdScheduler extends AlphaSampler<Config> {
  constructor(config: Config, request: ScheduleRequest) {
    super(config, distilledTimesteps(config, request), request.file);
  }

  protected advance({ modelOutput, index, sample, out, noise }: Step): void {
    const { eta } = this.config;
    const isLast = index === this.timesteps.length - 1;
    const drawn = eta > 0 && !isLast ? noise() : undefined;
    const next = isLast ? 0 : this.timesteps[index + 1];
    const reached = this.alphasCumprod[Math.floor((1 - eta) * next)];
    const { alpha, sigma } = this.level(index);
    const original = originalWeights(this.predictionType, alpha, sigma);
    const predicted = noiseWeights(this.predictionType, alpha, sigma);
    const to = levelOf(reached);
    const sampleWeight = to.alpha * original.sample + to.sigma * predicted.sample;
    const outputWeight = to.alpha * original.output + to.sigma * predicted.output;
    combine(sample, sampleWeight, modelOutput, outputWeight, out);
    if (!drawn) return;
    const kept = this.alphasCumprod[next] / reached;
    combine(out, Math.sqrt(kept), drawn, Math.sqrt(1 - kept), out);
  }
}
