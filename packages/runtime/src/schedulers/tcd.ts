import * as z from "zod/mini";
import {
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
import { combine, noiseWeights, originalWeights } from "./scheduler.ts";
import { distilledTimesteps } from "./timesteps.ts";

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
class TcdScheduler extends Sampler {
  readonly #eta: number;
  readonly #schedule: NoiseSchedule;

  constructor(config: Config, { steps, file }: ScheduleRequest) {
    refuseEpsilonAtZeroSnr(config, file);
    super(config.prediction_type, distilledTimesteps(config, steps, file));
    this.#eta = config.eta;
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
    const isLast = index === this.timesteps.length - 1;
    const drawn = this.#eta > 0 && !isLast ? noise() : undefined;
    const next = isLast ? 0 : this.timesteps[index + 1];
    const { alphasCumprod } = this.#schedule;
    const reached = alphasCumprod[Math.floor((1 - this.#eta) * next)];
    const { alpha, sigma } = this.level(index);
    const original = originalWeights(this.predictionType, alpha, sigma);
    const predicted = noiseWeights(this.predictionType, alpha, sigma);
    const to = levelOf(reached);
    const sampleWeight = to.alpha * original.sample + to.sigma * predicted.sample;
    const outputWeight = to.alpha * original.output + to.sigma * predicted.output;
    combine(sample, sampleWeight, modelOutput, outputWeight, out);
    if (!drawn) return;
    const kept = alphasCumprod[next] / reached;
    combine(out, Math.sqrt(kept), drawn, Math.sqrt(1 - kept), out);
  }
}
