import {
  betaOptions,
  clipOptions,
  defineScheduler,
  lastAlphaOptions,
  type OptionsOf,
  type ScheduleRequest,
  spacingOptions,
  thresholdingKeys,
  zeroSnrOptions,
} from "./definition.ts";
import {
  alphaCumprodAt,
  betaLevels,
  checkTimesteps,
  createNoiseSchedule,
  type Level,
  levelOf,
  type NoiseSchedule,
  refuseEpsilonAtZeroSnr,
} from "./noise-schedule.ts";
import { Sampler } from "./sampler.ts";
import { noiseWeights, originalWeights } from "./scheduler.ts";
import { roundHalfToEven, spacedTimesteps } from "./timesteps.ts";

const options = {
  ...betaOptions,
  ...zeroSnrOptions,
  ...clipOptions(true),
  ...spacingOptions("leading"),
  ...lastAlphaOptions(true),
};

type Config = OptionsOf<typeof options>;

export const ddim = defineScheduler({
  classes: ["DDIMScheduler"],
  options,
  inert: thresholdingKeys,
  levels: betaLevels,
  create: (config, request) => new DdimScheduler(config, request),
});

/** Song et al., "Denoising Diffusion Implicit Models" (2021), equation 12 with eta = 0. */
class DdimScheduler extends Sampler {
  readonly #config: Config;
  readonly #schedule: NoiseSchedule;
  readonly #stride: number;

  constructor(config: Config, { steps, file }: ScheduleRequest) {
    refuseEpsilonAtZeroSnr(config, file);
    const { timestep_spacing: spacing, num_train_timesteps: trainTimesteps, steps_offset: offset } = config;
    const timesteps = spacedTimesteps(spacing, steps, trainTimesteps, offset).map(roundHalfToEven);
    checkTimesteps(timesteps, config, file);
    super(config.prediction_type, timesteps);
    this.#config = config;
    this.#schedule = createNoiseSchedule(config, false);
    this.#stride = Math.floor(trainTimesteps / steps);
  }

  protected level(index: number): Level {
    return levelOf(this.#schedule.alphasCumprod[this.timesteps[index]]);
  }

  protected advance(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    const { alpha, sigma } = this.level(index);
    const next = levelOf(alphaCumprodAt(this.#schedule, this.#config, this.timesteps[index] - this.#stride));
    const original = originalWeights(this.predictionType, alpha, sigma);
    const noise = noiseWeights(this.predictionType, alpha, sigma);
    const range = this.#config.clip_sample ? this.#config.clip_sample_range : Number.POSITIVE_INFINITY;
    for (let i = 0; i < out.length; i++) {
      const state = sample[i];
      const output = modelOutput[i];
      const predicted = original.sample * state + original.output * output;
      const clipped = Math.min(Math.max(predicted, -range), range);
      out[i] = next.alpha * clipped + next.sigma * (noise.sample * state + noise.output * output);
    }
  }
}
