import { AlphaSampler } from "./alpha-sampler.ts";
import {
  betaOptions,
  clipOptions,
  clipRange,
  defineScheduler,
  lastAlphaOptions,
  type OptionsOf,
  type ScheduleRequest,
  spacingOptions,
  thresholdingKeys,
  zeroSnrOptions,
} from "./definition.ts";
import { alphaCumprodAt, betaLevels, levelOf } from "./noise-schedule.ts";
import type { Step } from "./sampler.ts";
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
class DdimScheduler extends AlphaSampler<Config> {
  readonly #stride: number;

  constructor(config: Config, { steps, file }: ScheduleRequest) {
    super(config, spacedTimesteps(config, steps).map(roundHalfToEven), file);
    this.#stride = Math.floor(config.num_train_timesteps / steps);
  }

  protected advance({ modelOutput, index, sample, out }: Step): void {
    const { alpha, sigma } = this.level(index);
    const next = levelOf(alphaCumprodAt(this.alphasCumprod, this.config, this.timesteps[index] - this.#stride));
    const original = originalWeights(this.predictionType, alpha, sigma);
    const noise = noiseWeights(this.predictionType, alpha, sigma);
    const range = clipRange(this.config);
    for (let i = 0; i < out.length; i++) {
      const state = sample[i];
      const output = modelOutput[i];
      const predicted = original.sample * state + original.output * output;
      const clipped = Math.min(Math.max(predicted, -range), range);
      out[i] = next.alpha * clipped + next.sigma * (noise.sample * state + noise.output * output);
    }
  }
}
