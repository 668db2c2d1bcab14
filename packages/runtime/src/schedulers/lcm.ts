import { InputError } from "@quad-lora/base";
import type { SchedulerConfig } from "./config.ts";
import { refuseEpsilonAtZeroSnr } from "./ddim.ts";
import { createNoiseSchedule, type NoiseSchedule } from "./noise-schedule.ts";
import { checkIndex, checkLengths, combine, drawNoise, originalWeights, type Scheduler } from "./scheduler.ts";

/** Standard deviation of the data in the boundary condition, as the consistency models were trained. */
const sigmaData = 0.5;

/**
 * Luo et al., "Latent Consistency Models" (2023), algorithm 3: predicts x0, then adds new noise for the next timestep.
 * Every step but the last needs noise. The timesteps are chosen from the `original_inference_steps` of the distillation.
 */
export class LcmScheduler implements Scheduler {
  readonly timesteps: readonly number[];
  readonly initNoiseSigma = 1;
  readonly predictionType;
  readonly #config: SchedulerConfig;
  readonly #schedule: NoiseSchedule;

  constructor(config: SchedulerConfig, steps: number, file?: string) {
    refuseEpsilonAtZeroSnr(config, file);
    const { original_inference_steps: originalSteps, num_train_timesteps: trainTimesteps } = config;
    if (originalSteps > trainTimesteps || steps > originalSteps) {
      throw new InputError({
        what: "too many steps",
        file,
        where: "original_inference_steps",
        expected: "steps <= original_inference_steps <= num_train_timesteps",
        got: `${steps}, ${originalSteps}, ${trainTimesteps}`,
        fix: "Use fewer steps.",
      });
    }
    this.#config = config;
    this.#schedule = createNoiseSchedule(config, false);
    this.predictionType = config.prediction_type;
    const stride = Math.floor(trainTimesteps / originalSteps);
    this.timesteps = Array.from({ length: steps }, (_, step) => {
      const skipped = Math.floor((step * originalSteps) / steps);
      return (originalSteps - skipped) * stride - 1;
    });
  }

  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, out);
    out.set(sample);
  }

  step(
    modelOutput: Float32Array,
    index: number,
    sample: Float32Array,
    out: Float32Array,
    noise?: () => Float32Array,
  ): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, modelOutput, out);
    const drawn = index < this.timesteps.length - 1 ? drawNoise(noise, sample) : undefined;
    const timestep = this.timesteps[index];
    const { alpha, sigma } = this.#alphaSigma(timestep);
    const weights = originalWeights(this.predictionType, alpha, sigma);
    const range = this.#config.clip_sample ? this.#config.clip_sample_range : Number.POSITIVE_INFINITY;
    const scaled = timestep * this.#config.timestep_scaling;
    const skip = sigmaData ** 2 / (scaled ** 2 + sigmaData ** 2);
    const keep = scaled / Math.sqrt(scaled ** 2 + sigmaData ** 2);
    for (let i = 0; i < out.length; i++) {
      const original = weights.sample * sample[i] + weights.output * modelOutput[i];
      out[i] = keep * Math.min(Math.max(original, -range), range) + skip * sample[i];
    }
    if (!drawn) return;
    const next = this.#alphaSigma(this.timesteps[index + 1]);
    combine(out, next.alpha, drawn, next.sigma, out);
  }

  #alphaSigma(timestep: number): { alpha: number; sigma: number } {
    const alphaCumprod = this.#schedule.alphasCumprod[timestep];
    return { alpha: Math.sqrt(alphaCumprod), sigma: Math.sqrt(1 - alphaCumprod) };
  }

  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(original, noise, out);
    const { alpha, sigma } = this.#alphaSigma(this.timesteps[index]);
    combine(original, alpha, noise, sigma, out);
  }
}
