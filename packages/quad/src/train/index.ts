export type { Evaluation, TrainingCurve, TrainingState } from "./checkpoint.ts";
export { type TrainAdapterOptions, type TrainAdapterResult, trainAdapter, trainDefaults } from "./train-adapter.ts";
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
