import { InputError } from "@quad-lora/base";
import { type BetaConfig, createNoiseSchedule, levelOf } from "./noise-schedule.ts";
import { Sampler } from "./sampler.ts";
import type { Level, PredictionType } from "./scheduler.ts";

type AlphaConfig = BetaConfig & { prediction_type: PredictionType };

/** A sampler of a variance-preserving process whose evaluations are at timesteps of the training schedule, as DDIM's are. */
export abstract class AlphaSampler<Config extends AlphaConfig> extends Sampler {
  protected readonly config: Config;
  /** `alpha^2`, one per training timestep. */
  protected readonly alphasCumprod: Float64Array;

  /** @throws InputError when the timesteps or the prediction type do not go with the training schedule */
  constructor(config: Config, timesteps: readonly number[], file: string | undefined) {
    refuseEpsilonAtZeroSnr(config, file);
    checkTimesteps(timesteps, config, file);
    super(config.prediction_type, timesteps);
    this.config = config;
    this.alphasCumprod = createNoiseSchedule(config, false).alphasCumprod;
  }

  protected level(index: number): Level {
    return levelOf(this.alphasCumprod[this.timesteps[index]]);
  }
}

/** Noise that hides the original completely says nothing about it, so x0 cannot come from the noise alone. */
function refuseEpsilonAtZeroSnr(
  { rescale_betas_zero_snr: rescales, prediction_type: predicts }: AlphaConfig,
  file: string | undefined,
): void {
  if (!rescales || predicts !== "epsilon") return;
  throw new InputError({
    what: "a zero terminal signal-to-noise ratio has no epsilon prediction",
    file,
    where: "rescale_betas_zero_snr",
    expected: 'prediction_type "v_prediction" or "sample"',
    got: '"epsilon"',
    fix: "Set the prediction type the model was trained with, or switch rescale_betas_zero_snr off.",
  });
}

/** Refuses timesteps that the training schedule does not have; `steps` close to the training count cause them. */
function checkTimesteps(
  timesteps: readonly number[],
  { num_train_timesteps: count }: AlphaConfig,
  file: string | undefined,
): void {
  const highest = Math.max(...timesteps);
  const lowest = Math.min(...timesteps);
  if (highest < count && lowest >= 0) return;
  throw new InputError({
    what: "the steps reach outside the training timesteps",
    file,
    where: "steps_offset",
    expected: `timesteps in 0..${count - 1}`,
    got: `${lowest}..${highest}`,
    fix: "Use fewer steps or a smaller steps_offset.",
  });
}
