import type { SchedulerConfig } from "./config.ts";
import { createNoiseSchedule, variancePreserving } from "./noise-schedule.ts";
import {
  checkIndex,
  checkLengths,
  combine,
  drawNoise,
  originalWeights,
  type PredictionWeights,
  type Scheduler,
  scale,
} from "./scheduler.ts";
import { sigmaInitNoise, sigmaSteps } from "./timesteps.ts";

/** Weights for x0 when the sample is `x0 + sigma * noise`, so the variance-preserving one is smaller by alpha. */
export function explodingOriginalWeights(type: SchedulerConfig["prediction_type"], sigma: number): PredictionWeights {
  const preserving = variancePreserving(sigma);
  const weights = originalWeights(type, preserving.alpha, preserving.sigma);
  return { sample: weights.sample * preserving.alpha, output: weights.output };
}

/**
 * Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 2 without
 * churn and without the second-order correction. With `ancestral`, every step goes further down and adds new noise.
 */
export class EulerScheduler implements Scheduler {
  readonly timesteps: readonly number[];
  readonly initNoiseSigma: number;
  readonly predictionType;
  readonly #sigmas: Float64Array;
  readonly #ancestral: boolean;

  constructor(config: SchedulerConfig, steps: number) {
    const { timesteps, sigmas } = sigmaSteps(config, createNoiseSchedule(config, true), steps);
    this.timesteps = timesteps;
    this.initNoiseSigma = sigmaInitNoise(config, sigmas);
    this.predictionType = config.prediction_type;
    this.#sigmas = sigmas;
    this.#ancestral = config._class_name === "EulerAncestralDiscreteScheduler";
  }

  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, out);
    scale(sample, variancePreserving(this.#sigmas[index]).alpha, out);
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
    const sigma = this.#sigmas[index];
    const next = this.#sigmas[index + 1];
    // Variance of the step splits into what the deterministic part keeps (down) and what fresh noise restores (up).
    const up = this.#ancestral ? Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2) : 0;
    const down = this.#ancestral ? Math.sqrt(next ** 2 - up ** 2) : next;
    // x + (x - x0) / sigma * (down - sigma)
    const shrink = down / sigma;
    const weights = explodingOriginalWeights(this.predictionType, sigma);
    const drawn = up > 0 ? drawNoise(noise, sample) : undefined;
    combine(sample, shrink + (1 - shrink) * weights.sample, modelOutput, (1 - shrink) * weights.output, out);
    if (drawn) combine(out, 1, drawn, up, out);
  }

  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(original, noise, out);
    combine(original, 1, noise, this.#sigmas[index], out);
  }
}
