import type { Model } from "../ir/model.ts";

/** A rewrite of a model in place that leaves its outputs as they were, for every input the model accepts. */
export interface Pass {
  readonly name: string;
  /** One sentence for listings. */
  readonly description: string;
  /** @returns how many places changed; 0 means the model is untouched */
  run(model: Model): number | Promise<number>;
}

// Operators whose outputs differ from run to run.
const randomOperators = new Set([
  "RandomNormal",
  "RandomNormalLike",
  "RandomUniform",
  "RandomUniformLike",
  "Multinomial",
  "Bernoulli",
]);

export function isDeterministic(opType: string): boolean {
  return !randomOperators.has(opType);
}
