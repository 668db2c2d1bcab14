import type { SchedulerConfig } from "./config.ts";
import { createNoiseSchedule, variancePreserving } from "./noise-schedule.ts";
import {
  checkIndex,
  checkLengths,
  combine,
  History,
  originalWeights,
  type Scheduler,
  type Term,
  weightedSum,
} from "./scheduler.ts";
import { solverSteps } from "./timesteps.ts";

/** Schedules shorter than this end on lower orders when `lower_order_final` is set, as in diffusers. */
const shortSchedule = 15;

/**
 * DPM-Solver++ multistep of order 1 to 3: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
 * Probabilistic Models" (2022), algorithm 2 and appendix. Works on predictions of x0 in the half log signal-to-noise
 * ratio lambda = log(alpha / sigma). A trajectory without history begins at order 1.
 */
export class DpmSolverScheduler implements Scheduler {
  readonly timesteps: readonly number[];
  readonly initNoiseSigma = 1;
  readonly predictionType;
  readonly #config: SchedulerConfig;
  readonly #sigmas: Float64Array;
  readonly #originals: History;

  constructor(config: SchedulerConfig, steps: number) {
    const { timesteps, sigmas } = solverSteps(config, createNoiseSchedule(config, true), steps);
    this.timesteps = timesteps;
    this.predictionType = config.prediction_type;
    this.#config = config;
    this.#sigmas = sigmas;
    this.#originals = new History(config.solver_order);
  }

  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, out);
    out.set(sample);
  }

  step(modelOutput: Float32Array, index: number, sample: Float32Array, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, modelOutput, out);
    const { alpha, sigma } = variancePreserving(this.#sigmas[index]);
    const weights = originalWeights(this.predictionType, alpha, sigma);
    this.#originals.enter(index, sample.length);
    combine(sample, weights.sample, modelOutput, weights.output, this.#originals.push());
    if (this.#sigmas[index + 1] === this.#sigmas[index]) out.set(sample);
    else weightedSum([{ values: sample, weight: this.#shrink(index) }, ...this.#terms(index)], out);
  }

  #shrink(index: number): number {
    return variancePreserving(this.#sigmas[index + 1]).sigma / variancePreserving(this.#sigmas[index]).sigma;
  }

  #order(index: number): number {
    const { solver_order, lower_order_final, euler_at_final, final_sigmas_type } = this.#config;
    const left = this.timesteps.length - index;
    const order = Math.min(solver_order, this.#originals.count);
    const short = lower_order_final && this.timesteps.length < shortSchedule;
    if (left === 1 && (short || euler_at_final || final_sigmas_type === "zero")) return 1;
    return left === 2 && short ? Math.min(order, 2) : order;
  }

  /** Weights of the x0 predictions, newest first. */
  #terms(index: number): Term[] {
    const order = this.#order(index);
    const { alpha } = variancePreserving(this.#sigmas[index + 1]);
    const lambda = (at: number) => -Math.log(this.#sigmas[at]);
    const h = lambda(index + 1) - lambda(index);
    const decay = Math.expm1(-h);
    const m = (age: number, weight: number): Term => ({ values: this.#originals.at(age), weight });
    if (order === 1) return [m(0, -alpha * decay)];

    const r0 = (lambda(index) - lambda(index - 1)) / h;
    const firstDerivative = alpha * (decay / h + 1);
    if (order === 2) {
      const slope = (this.#config.solver_type === "heun" ? firstDerivative : -0.5 * alpha * decay) / r0;
      return [m(0, -alpha * decay + slope), m(1, -slope)];
    }

    // D1 = d0 + r0 / (r0 + r1) (d0 - d1) and D2 = (d0 - d1) / (r0 + r1), with the difference quotients
    // d0 = (m0 - m1) / r0 and d1 = (m1 - m2) / r1.
    const r1 = (lambda(index - 1) - lambda(index - 2)) / h;
    const secondDerivative = -alpha * ((decay + h) / h ** 2 - 0.5);
    const bend = (firstDerivative * r0 + secondDerivative) / (r0 + r1);
    const newer = (firstDerivative + bend) / r0;
    const older = -bend / r1;
    return [m(0, -alpha * decay + newer), m(1, older - newer), m(2, -older)];
  }

  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(original, noise, out);
    const { alpha, sigma } = variancePreserving(this.#sigmas[index]);
    combine(original, alpha, noise, sigma, out);
  }
}
