import type { Model } from "../ir/model.ts";
import type { Node } from "../ir/node.ts";

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

/** Whether equal inputs surely give equal outputs. Operators of unknown domains, local functions among them, may be random. */
export function isDeterministic({ opType, domain, inputs }: Node): boolean {
  if (domain !== "" && domain !== "com.microsoft") return false;
  return !randomOperators.has(opType) && !(opType.endsWith("Dropout") && inputs[2]);
}
