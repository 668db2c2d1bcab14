import type { SchedulerConfig } from "./config.ts";
import { explodingOriginalWeights } from "./euler.ts";
import { createNoiseSchedule, variancePreserving } from "./noise-schedule.ts";
import { checkIndex, checkLengths, combine, History, type Scheduler, scale } from "./scheduler.ts";
import { sigmaInitNoise, sigmaSteps } from "./timesteps.ts";

/**
 * Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 1.
 * Even evaluations take an Euler step, odd ones correct it; the last step to zero noise stays uncorrected.
 * A trajectory that starts at an odd evaluation has nothing to correct there, and the sample passes unchanged.
 */
export class HeunScheduler implements Scheduler {
  readonly timesteps: readonly number[];
  readonly initNoiseSigma: number;
  readonly predictionType;
  readonly #sigmas: Float64Array;
  readonly #clipRange: number;
  /** Derivative (newest) and sample at the start of the step. */
  readonly #start = new History(2);

  constructor(config: SchedulerConfig, steps: number) {
    const { timesteps, sigmas } = sigmaSteps(config, createNoiseSchedule(config, true), steps);
    this.timesteps = timesteps.flatMap((timestep, step) => (step === 0 ? [timestep] : [timestep, timestep]));
    this.initNoiseSigma = sigmaInitNoise(config, sigmas);
    this.predictionType = config.prediction_type;
    this.#sigmas = sigmas;
    this.#clipRange = config.clip_sample ? config.clip_sample_range : Number.POSITIVE_INFINITY;
  }

  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, out);
    scale(sample, variancePreserving(this.#sigmaAt(index)).alpha, out);
  }

  step(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, modelOutput, out);
    this.#start.enter(index, sample.length);
    if (index % 2 === 0) this.#predict(modelOutput, index, sample, out);
    else if (this.#start.count === 0) out.set(sample);
    else this.#correct(modelOutput, index, sample, out);
  }

  #predict(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    const start = this.#start.push();
    const derivative = this.#start.push();
    start.set(sample);
    this.#derivative(modelOutput, index, sample, derivative);
    combine(start, 1, derivative, this.#sigmas[index / 2 + 1] - this.#sigmas[index / 2], out);
  }

  #correct(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    const start = this.#start.at(1);
    const derivative = this.#start.at(0);
    const halfStep = (this.#sigmas[(index + 1) / 2] - this.#sigmas[(index - 1) / 2]) / 2;
    combine(start, 1, derivative, halfStep, start);
    this.#derivative(modelOutput, index, sample, derivative);
    combine(start, 1, derivative, halfStep, out);
  }

  /** `(x - x0) / sigma` */
  #derivative(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    const sigma = this.#sigmaAt(index);
    const weights = explodingOriginalWeights(this.predictionType, sigma);
    const range = this.#clipRange;
    for (let i = 0; i < out.length; i++) {
      const original = weights.sample * sample[i] + weights.output * modelOutput[i];
      out[i] = (sample[i] - Math.min(Math.max(original, -range), range)) / sigma;
    }
  }

  #sigmaAt(index: number): number {
    return this.#sigmas[Math.ceil(index / 2)];
  }

  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(original, noise, out);
    combine(original, 1, noise, this.#sigmaAt(index), out);
  }
}
