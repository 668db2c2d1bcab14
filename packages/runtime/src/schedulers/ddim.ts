import { InputError } from "@quad-lora/base";
import type { SchedulerConfig } from "./config.ts";
import { checkTimesteps, createNoiseSchedule, type NoiseSchedule } from "./noise-schedule.ts";
import { checkIndex, checkLengths, combine, noiseWeights, originalWeights, type Scheduler } from "./scheduler.ts";
import { roundHalfToEven, spacedTimesteps } from "./timesteps.ts";

/** `alpha^2` at a timestep; before timestep 0 it is 1 or that of timestep 0, as `set_alpha_to_one` says. */
export function alphaCumprodAt(schedule: NoiseSchedule, config: SchedulerConfig, timestep: number): number {
  if (timestep >= 0) return schedule.alphasCumprod[timestep];
  return config.set_alpha_to_one ? 1 : schedule.alphasCumprod[0];
}

/** Noise that hides the original completely says nothing about it, so x0 cannot come from the noise alone. */
export function refuseEpsilonAtZeroSnr(config: SchedulerConfig, file: string | undefined): void {
  if (!config.rescale_betas_zero_snr || config.prediction_type !== "epsilon") return;
  throw new InputError({
    what: "a zero terminal signal-to-noise ratio has no epsilon prediction",
    file,
    where: "rescale_betas_zero_snr",
    expected: 'prediction_type "v_prediction" or "sample"',
    got: '"epsilon"',
    fix: "Set the prediction type the model was trained with, or switch rescale_betas_zero_snr off.",
  });
}

/** Song et al., "Denoising Diffusion Implicit Models" (2021), equation 12 with eta = 0. */
export class DdimScheduler implements Scheduler {
  readonly timesteps: readonly number[];
  readonly initNoiseSigma = 1;
  readonly predictionType;
  readonly #config: SchedulerConfig;
  readonly #schedule: NoiseSchedule;
  readonly #stride: number;

  constructor(config: SchedulerConfig, steps: number, file?: string) {
    refuseEpsilonAtZeroSnr(config, file);
    this.#config = config;
    this.#schedule = createNoiseSchedule(config, false);
    this.#stride = Math.floor(config.num_train_timesteps / steps);
    this.predictionType = config.prediction_type;
    const spacing = config.timestep_spacing;
    this.timesteps = spacedTimesteps(spacing, steps, config.num_train_timesteps, config.steps_offset).map(
      roundHalfToEven,
    );
    checkTimesteps(this.timesteps, config, file);
  }

  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, out);
    out.set(sample);
  }

  step(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, modelOutput, out);
    const timestep = this.timesteps[index];
    const alphaCumprod = alphaCumprodAt(this.#schedule, this.#config, timestep);
    const nextAlphaCumprod = alphaCumprodAt(this.#schedule, this.#config, timestep - this.#stride);
    const alpha = Math.sqrt(alphaCumprod);
    const sigma = Math.sqrt(1 - alphaCumprod);
    const original = originalWeights(this.predictionType, alpha, sigma);
    const noise = noiseWeights(this.predictionType, alpha, sigma);
    const nextAlpha = Math.sqrt(nextAlphaCumprod);
    const nextSigma = Math.sqrt(1 - nextAlphaCumprod);
    const range = this.#config.clip_sample ? this.#config.clip_sample_range : Number.POSITIVE_INFINITY;
    for (let i = 0; i < out.length; i++) {
      const state = sample[i];
      const output = modelOutput[i];
      const predicted = original.sample * state + original.output * output;
      const clipped = Math.min(Math.max(predicted, -range), range);
      out[i] = nextAlpha * clipped + nextSigma * (noise.sample * state + noise.output * output);
    }
  }

  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(original, noise, out);
    const alphaCumprod = this.#schedule.alphasCumprod[this.timesteps[index]];
    combine(original, Math.sqrt(alphaCumprod), noise, Math.sqrt(1 - alphaCumprod), out);
  }
}
