import * as z from "zod/mini";
import { defineScheduler, notImplemented, type OptionsOf, thresholdingKeys } from "./definition.ts";
import type { Step } from "./sampler.ts";
import { combine, originalWeights, type Term, weightedSum } from "./scheduler.ts";
import { SolverSampler, solverLevels, solverOptions } from "./solver-sampler.ts";

const options = {
  ...solverOptions,
  algorithm_type: z._default(z.literal("dpmsolver++"), "dpmsolver++"),
  euler_at_final: z._default(z.boolean(), false),
  /** The schedule starts at the first log signal-to-noise ratio that reaches this. */
  lambda_min_clipped: z._default(z.union([z.number(), z.literal(Number.NEGATIVE_INFINITY)]), Number.NEGATIVE_INFINITY),
  /** The variance that a model predicts beside its noise has no use in these algorithms. */
  variance_type: notImplemented,
};

type Config = OptionsOf<typeof options>;

export const dpmSolver = defineScheduler({
  classes: ["DPMSolverMultistepScheduler"],
  options,
  inert: thresholdingKeys,
  levels: solverLevels,
  create: (config, request) => new DpmSolverScheduler(config, request),
});

/** Schedules shorter than this end on lower orders when `lower_order_final` is set, as in diffusers. */
const shortSchedule = 15;

/**
 * DPM-Solver++ multistep of order 1 to 3: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
 * Probabilistic Models" (2022), algorithm 2 and appendix. A trajectory without history begins at order 1.
 */
class DpmSolverScheduler extends SolverSampler<Config> {
  protected advance({ modelOutput, index, sample, out }: Step): void {
    const { alpha, sigma } = this.level(index);
    const weights = originalWeights(this.predictionType, alpha, sigma);
    this.originals.enter(index, sample.length);
    combine(sample, weights.sample, modelOutput, weights.output, this.originals.push());
    const next = this.level(index + 1);
    if (next.sigma === sigma) out.set(sample);
    else weightedSum([{ values: sample, weight: next.sigma / sigma }, ...this.#terms(index)], out);
  }

  #order(index: number): number {
    const { solver_order, lower_order_final, euler_at_final, final_sigmas_type } = this.config;
    const left = this.timesteps.length - index;
    const order = Math.min(solver_order, this.originals.count);
    const short = lower_order_final && this.timesteps.length < shortSchedule;
    if (left === 1 && (short || euler_at_final || final_sigmas_type === "zero")) return 1;
    return left === 2 && short ? Math.min(order, 2) : order;
  }

  /** Weights of the x0 predictions, newest first. */
  #terms(index: number): Term[] {
    const order = this.#order(index);
    const { alpha } = this.level(index + 1);
    const h = this.lambda(index + 1) - this.lambda(index);
    const decay = Math.expm1(-h);
    const m = (age: number, weight: number): Term => ({ values: this.originals.at(age), weight });
    if (order === 1) return [m(0, -alpha * decay)];

    const r0 = (this.lambda(index) - this.lambda(index - 1)) / h;
    const firstDerivative = alpha * (decay / h + 1);
    if (order === 2) {
      const slope = (this.config.solver_type === "heun" ? firstDerivative : -0.5 * alpha * decay) / r0;
      return [m(0, -alpha * decay + slope), m(1, -slope)];
    }

    // D1 = d0 + r0 / (r0 + r1) (d0 - d1) and D2 = (d0 - d1) / (r0 + r1), with the difference quotients
    // d0 = (m0 - m1) / r0 and d1 = (m1 - m2) / r1.
    const r1 = (this.lambda(index - 1) - this.lambda(index - 2)) / h;
    const secondDerivative = -alpha * ((decay + h) / h ** 2 - 0.5);
    const bend = (firstDerivative * r0 + secondDerivative) / (r0 + r1);
    const newer = (firstDerivative + bend) / r0;
    const older = -bend / r1;
    return [m(0, -alpha * decay + newer), m(1, older - newer), m(2, -older)];
  }
}
