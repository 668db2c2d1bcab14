import * as z from "zod/mini";
import { defineScheduler, notImplemented, type OptionsOf, thresholdingKeys } from "./definition.ts";
import type { Step } from "./sampler.ts";
import { combine, originalWeights, type Term, weightedSum } from "./scheduler.ts";
import { SolverSampler, solverLevels, solverOptions } from "./solver-sampler.ts";

const options = {
  ...solverOptions,
  predict_x0: z._default(z.literal(true), true),
  solver_p: notImplemented,
  /** Steps after which the corrector stays off. */
  disable_corrector: z._default(z.array(z.int()), []),
};

type Config = OptionsOf<typeof options>;

export const uniPc = defineScheduler({
  classes: ["UniPCMultistepScheduler"],
  options,
  inert: thresholdingKeys,
  levels: solverLevels,
  create: (config, request) => new UniPcScheduler(config, request),
});

/**
 * Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (2023),
 * algorithms 5 to 8. Every evaluation first corrects the step that led to it (UniC), then takes the next one (UniP).
 * A trajectory without history begins at order 1, uncorrected.
 */
class UniPcScheduler extends SolverSampler<Config> {
  /** The sample from which the last step started; in a trajectory without gaps it belongs to the previous index. */
  #start = new Float32Array(0);
  #original = new Float32Array(0);
  #order = 0;

  protected advance({ modelOutput, index, sample, out }: Step): void {
    const { alpha, sigma } = this.level(index);
    const weights = originalWeights(this.predictionType, alpha, sigma);
    this.originals.enter(index, sample.length);
    if (this.#start.length !== sample.length) {
      this.#start = new Float32Array(sample.length);
      this.#original = new Float32Array(sample.length);
    }
    combine(sample, weights.sample, modelOutput, weights.output, this.#original);

    const { disable_corrector, solver_order, lower_order_final } = this.config;
    if (this.originals.count > 0 && !disable_corrector.includes(index - 1)) {
      weightedSum(this.#update(index - 1, this.#order, this.#original), this.#start);
    } else {
      this.#start.set(sample);
    }
    this.originals.push().set(this.#original);
    const left = this.timesteps.length - index;
    const next = this.level(index + 1).sigma;
    this.#order = Math.min(solver_order, this.originals.count, lower_order_final || next === 0 ? left : solver_order);
    if (next === sigma) out.set(this.#start);
    else weightedSum(this.#update(index, this.#order), out);
  }

  /**
   * The step from `index` to `index + 1`, as weights of the start sample and the predictions of x0.
   * @param reached - the prediction at the step's end, which turns the predictor into the corrector
   */
  #update(index: number, order: number, reached?: Float32Array): Term[] {
    const next = this.level(index + 1);
    const shrink = next.sigma / this.level(index).sigma;
    const h = this.lambda(index + 1) - this.lambda(index);
    const decay = Math.expm1(-h);
    const scale = this.config.solver_type === "bh1" ? -h : decay;

    const positions = Array.from(
      { length: order - 1 },
      (_, i) => (this.lambda(index - 1 - i) - this.lambda(index)) / h,
    );
    if (reached) positions.push(1);
    const solution = differenceWeights(positions, -h, scale);
    const older = solution.slice(0, order - 1).map((weight, i) => ({
      values: this.originals.at(i + 1),
      weight: (-next.alpha * scale * weight) / positions[i],
    }));
    const differences: Term[] = reached
      ? [...older, { values: reached, weight: -next.alpha * scale * solution[order - 1] }]
      : older;
    const base = differences.reduce((sum, { weight }) => sum - weight, -next.alpha * decay);
    return [{ values: this.#start, weight: shrink }, { values: this.originals.at(0), weight: base }, ...differences];
  }
}

/**
 * Weights of the difference quotients at `positions` (in units of the step): they match the Taylor terms
 * `k! phi_{k+1}(x) / B(h)`, equation 7 of the paper. One quotient alone gets 1/2, which keeps the order.
 */
function differenceWeights(positions: readonly number[], x: number, scale: number): number[] {
  if (positions.length === 0) return [];
  if (positions.length === 1) return [0.5];
  const right: number[] = [];
  let phi = Math.expm1(x) / x - 1;
  let factorial = 1;
  for (let k = 1; k <= positions.length; k++) {
    right.push((phi * factorial) / scale);
    factorial *= k + 1;
    phi = phi / x - 1 / factorial;
  }
  const matrix = positions.map((_, power) => positions.map((position) => position ** power));
  return solve(matrix, right);
}

/** Gaussian elimination with pivoting; overwrites its arguments. */
function solve(matrix: number[][], right: number[]): number[] {
  const size = right.length;
  for (let column = 0; column < size; column++) {
    let pivot = column;
    for (let row = column + 1; row < size; row++) {
      if (Math.abs(matrix[row][column]) > Math.abs(matrix[pivot][column])) pivot = row;
    }
    [matrix[column], matrix[pivot]] = [matrix[pivot], matrix[column]];
    [right[column], right[pivot]] = [right[pivot], right[column]];
    for (let row = column + 1; row < size; row++) {
      const factor = matrix[row][column] / matrix[column][column];
      for (let k = column; k < size; k++) matrix[row][k] -= factor * matrix[column][k];
      right[row] -= factor * right[column];
    }
  }
  for (let row = size - 1; row >= 0; row--) {
    for (let k = row + 1; k < size; k++) right[row] -= matrix[row][k] * right[k];
    right[row] /= matrix[row][row];
  }
  return right;
}
