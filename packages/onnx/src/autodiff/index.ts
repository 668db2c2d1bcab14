export { Builder } from "./builder.ts";
export { buildGradients, type DifferentiatedOutput, type GradientRequest } from "./gradients.ts";
export {
  type AdamWOptions,
  type AdamWState,
  adamW,
  clipByGlobalNorm,
  globalNorm,
  meanSquaredError,
} from "./optimizer.ts";
export { type PackedParameter, type PackedParameters, packInputs } from "./parameters.ts";
export type { SegmentOptions } from "./recompute.ts";
export type { Gradient, GradientOptions, GradientRule, ProductGradient, RuleCall, SliceGradient } from "./rule.ts";
export { type DifferentiableOperator, gradientRules } from "./rules/index.ts";
export { peakBytes, scheduleForMemory } from "./schedule.ts";
export type { Dims } from "./typed-graph.ts";
