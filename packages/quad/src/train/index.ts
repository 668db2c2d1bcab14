export type { Evaluation as TrainingEvaluation, TrainingCurve } from "./checkpoint.ts";
export { readTrainingFolder, type TrainingExample, type TrainingFolder } from "./dataset.ts";
export type { TrainOptions } from "./options.ts";
export { type TrainAdapterOptions, trainAdapter, trainDefaults } from "./train-adapter.ts";
export { type TrainWeightsOptions, trainWeights, trainWeightsDefaults } from "./train-weights.ts";
export type { TrainingProgress } from "./training-loop.ts";
export type { TrainResult } from "./training-run.ts";
