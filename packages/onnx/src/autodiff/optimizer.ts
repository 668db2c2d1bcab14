import type { Value } from "../ir/value.ts";
import { type Builder, range } from "./builder.ts";

/** Mean of the squared differences, a scalar. */
export function meanSquaredError(build: Builder, prediction: Value, target: Value): Value {
  const difference = build.sub(prediction, target);
  const square = build.mul(difference, difference);
  return build.reshape(build.reduce("ReduceMean", square, range(0, build.dims(square).length)), []);
}

/** Euclidean norm of all gradients together, a scalar. */
export function globalNorm(build: Builder, gradients: readonly Value[]): Value {
  const squares = gradients.map((gradient) =>
    build.reshape(build.reduce("ReduceSumSquare", gradient, range(0, build.dims(gradient).length)), []),
  );
  return build.unary(
    "Sqrt",
    squares.reduce((sum, square) => build.add(sum, square)),
  );
}

/** Scales gradients down together so that their global norm is at most `maxNorm` (Pascanu et al. 2013, arXiv 1211.5063). */
export function clipByGlobalNorm(
  build: Builder,
  gradients: readonly Value[],
  maxNorm: number,
): { gradients: Value[]; norm: Value } {
  const norm = globalNorm(build, gradients);
  const limit = build.scalar(maxNorm, norm);
  // max(norm, limit) is never zero.
  const factor = build.div(limit, build.binary("Max", norm, limit));
  return { gradients: gradients.map((gradient) => build.mul(gradient, factor)), norm };
}

/** Hyperparameters of AdamW; {@link adamW} has the defaults. */
export interface AdamWOptions {
  beta1?: number;
  beta2?: number;
  epsilon?: number;
  /** Decoupled weight decay per unit of learning rate. */
  weightDecay?: number;
}

/** What one AdamW update reads. Tensors share one shape; scalars are zero-dimensional. */
export interface AdamWState {
  readonly parameter: Value;
  readonly gradient: Value;
  /** Running mean of the gradient; zeros before the first step. */
  readonly mean: Value;
  /** Running mean of the squared gradient; zeros before the first step. */
  readonly square: Value;
  readonly learningRate: Value;
  /** `1 - beta1^step` with steps counted from 1. */
  readonly correction1: Value;
  /** `1 - beta2^step`. */
  readonly correction2: Value;
}

/** One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101): the new parameter and running means. */
export function adamW(
  build: Builder,
  state: AdamWState,
  { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 0.01 }: AdamWOptions = {},
): { parameter: Value; mean: Value; square: Value } {
  const { parameter, gradient, learningRate } = state;
  // m' = m + (1 - beta1) (g - m), v' = v + (1 - beta2) (g^2 - v)
  const mean = build.add(state.mean, build.mul(build.sub(gradient, state.mean), 1 - beta1));
  const square = build.add(state.square, build.mul(build.sub(build.mul(gradient, gradient), state.square), 1 - beta2));
  const deviation = build.unary("Sqrt", build.div(square, state.correction2));
  const direction = build.div(mean, build.add(deviation, build.scalar(epsilon, deviation)));
  const step = build.mul(direction, build.div(learningRate, state.correction1));
  const kept =
    weightDecay === 0
      ? parameter
      : build.mul(parameter, build.sub(build.scalar(1, parameter), build.mul(learningRate, weightDecay)));
  return { parameter: build.sub(kept, step), mean, square };
}
