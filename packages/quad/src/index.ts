export {
  InputError,
  type InputProblem,
  type SafetensorsEntry,
  type SafetensorsInput,
  type SafetensorsTensor,
} from "@quad-lora/base";
// What appears in signatures below: an application that installs quad-lora has this package's names only.
export type { Model, Node, Value } from "@quad-lora/onnx";
// What users of the toolkit get and give is partly the runtime's: they need no second package for its types.
export type * from "@quad-lora/runtime";
export * from "./ablation/index.ts";
export * from "./adapters/index.ts";
export { type AddOptions, addToBundle } from "./bundle/add.ts";
export { type BundleSummary, bundleEncodings, showBundle } from "./bundle/show.ts";
export { signBundle } from "./bundle/sign.ts";
export { type StorageRow, type StorageSizes, storageSizes, storageTable } from "./bundle/storage.ts";
export { verifyBundle } from "./bundle/verify.ts";
export { observeTasks, recordTask } from "./calibrate/calibrate.ts";
export { type CompileOptions, type CompileResult, compileBundle } from "./compile/compile-bundle.ts";
export * from "./distill/index.ts";
export * from "./encodings-files/index.ts";
export { evaluate } from "./evaluate/evaluate.ts";
export type { NetworkPaths } from "./evaluate/networks.ts";
export type { EvaluateOptions } from "./evaluate/options.ts";
export { planOfEvaluation } from "./evaluate/plan.ts";
export type { SimulatedVariant } from "./evaluate/simulated-variants.ts";
export {
  type ComponentSummary,
  type ExposeOptions,
  type ExposeResult,
  expose,
  inspectModel,
  toModule,
} from "./expose/expose.ts";
export { type ExposedComponent, exposeGraph, type SlotRank } from "./expose/expose-graph.ts";
export { mergeAdapter } from "./expose/merge-adapter.ts";
export { type BoundAdapter, bindAdapter } from "./factors/bind-adapter.ts";
export { type FileContents, writeFileAtomically } from "./files/atomic.ts";
export { folderFiles } from "./files/folder-files.ts";
export { hashFile } from "./files/hash.ts";
export { type ImageSize, readImage, readMask, writeImage } from "./files/images.ts";
export {
  type LazySafetensorsInput,
  openSafetensors,
  type SafetensorsReader,
  writeSafetensors,
} from "./files/safetensors.ts";
export { findLayers, type Layer, type LayerCall, type SkippedNode } from "./layers/find-layers.ts";
export * from "./metrics/index.ts";
export { loadComponent, type ModelFolder, openModelFolder } from "./model/model-folder.ts";
export { type OpenFolderOptions, openFolder } from "./model/open-folder.ts";
export { readSlots } from "./model/slots.ts";
export { buildProfile, type ProfileOptions } from "./profile/build-profile.ts";
export { type ImportedEncodings, importEncodings } from "./profile/import-encodings.ts";
export * from "./quantization/index.ts";
export { type Evaluation, readEvaluation } from "./records/evaluation.ts";
export { type Observations, readObservations, type TaskObservations } from "./records/observations.ts";
export { type Profile, pointEncoding, readProfile, writeProfile } from "./records/profile.ts";
export {
  type CaseResult,
  type ModelCall,
  readTrajectory,
  type TaskCase,
  type Trajectory,
} from "./records/trajectory.ts";
export type { ReportOptions } from "./report/options.ts";
export { writeReport } from "./report/report.ts";
export { type BuildConfig, type BuildConfigInput, defineConfig, loadConfig } from "./settings/config.ts";
export type { Policy, PolicyInput } from "./settings/policy.ts";
export type { Placement } from "./simulate/simulation-graph.ts";
export { type BuildResult, build, planOfBuild } from "./stages/build.ts";
export {
  type DistillBundleOptions,
  type DistillBundleResult,
  type DistillConfiguredOptions,
  distillBundle,
  distillConfigured,
} from "./stages/distill-configured.ts";
export type { BuildOptions } from "./stages/run.ts";
export type { TargetName } from "./targets/index.ts";
export * from "./train/index.ts";
export * from "./tune/index.ts";
export type { Executor, Job, JobContext } from "./work/executors/executor.ts";
export type { ExecutorName } from "./work/executors/index.ts";
export { type FileReference, type Needs, Plan, type Planned, type ResultReference, type Step } from "./work/plan.ts";
export type { PlanState } from "./work/plan-state.ts";
export type { Progress, StageOptions } from "./work/progress.ts";
export type { AnyStage, Disposable, Json, Stage, StageContext, StageResult } from "./work/stage.ts";
