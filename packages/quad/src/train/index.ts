export type { Evaluation, TrainingCurve, TrainingState } from "./checkpoint.ts";
export { type TrainAdapterOptions, trainAdapter, trainDefaults } from "./train-adapter.ts";
export { type TrainWeightsOptions, trainWeights, trainWeightsDefaults } from "./train-weights.ts";
export {
  buildTrainingGraph,
  LossSession,
  type OptimizerState,
  type TrainingGraph,
  type TrainingGraphOptions,
  TrainingSession,
  trainingNames,
} from "./training-graph.ts";
export {
  type BatchSource,
  type TrainingOptions,
  type TrainingProgress,
  type TrainingResult,
  trainingLoop,
} from "./training-loop.ts";
export type { TrainOptions, TrainResult } from "./training-run.ts";
