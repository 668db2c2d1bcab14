import type { GradientRule } from "../rule.ts";
import { binaryRules } from "./binary.ts";
import { convolutionRules } from "./convolution.ts";
import { indexingRules } from "./indexing.ts";
import { matrixRules } from "./matrix.ts";
import { normalizationRules } from "./normalization.ts";
import { poolingRules } from "./pooling.ts";
import { quantizationRules } from "./quantization.ts";
import { reductionRules } from "./reduction.ts";
import { resamplingRules } from "./resampling.ts";
import { shapeRules } from "./shape.ts";
import { softmaxRules } from "./softmax.ts";
import { unaryRules } from "./unary.ts";

/** Every rule, by operator; operators of other domains than the standard one carry their domain. */
export const gradientRules = {
  ...unaryRules,
  ...binaryRules,
  ...matrixRules,
  ...convolutionRules,
  ...normalizationRules,
  ...softmaxRules,
  ...reductionRules,
  ...shapeRules,
  ...indexingRules,
  ...resamplingRules,
  ...poolingRules,
  ...quantizationRules,
} satisfies Record<string, GradientRule>;

/** Operators that can be differentiated. */
export type DifferentiableOperator = keyof typeof gradientRules;

export function gradientRule(operator: string): GradientRule | null {
  return Object.hasOwn(gradientRules, operator) ? gradientRules[operator as DifferentiableOperator] : null;
}
