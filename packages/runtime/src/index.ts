export { InputError, type InputProblem, type Schema } from "@quad-lora/base";
export { adapterMetadata, type BundleIdentity } from "./adapter-file.ts";
export { AdapterBank, type AdapterFeeds, type Strengths } from "./adapters.ts";
export type { Autoencoder } from "./autoencoder.ts";
export { type Slot, type SlotsFile, slotsFileSchema } from "./configs.ts";
export { type PictureSize, pixelsPerLatent, readDefaultSize, readVaeConfig } from "./default-size.ts";
export type { ModelRun, StepInfo } from "./denoise.ts";
export { type EncodedImage, Encoders, type EncodersOptions, openEncoders } from "./encoders.ts";
export type {
  Companion,
  Conditions,
  Drawing,
  EncoderDefinition,
  Family,
  Guided,
  ImageUse,
  LatentLayout,
  PromptEncoding,
  Prompts,
  Row,
  RowInput,
} from "./families/family.ts";
export {
  chooseFamily,
  denoiserFolder,
  families,
  familiesOfClass,
  type ModelIndex,
  readModelIndex,
} from "./families/index.ts";
export { type FetchOptions, type FolderFiles, fetchFiles, parseJson, readJson } from "./files.ts";
export type { GeneratedImage, GenerateOptions } from "./generate-options.ts";
export { type Mask, type RgbImage, resizeNearest, rgbaFromRgb, rgbFromRgba } from "./images.ts";
export {
  type AdapterFit,
  type AdapterRecord,
  adapterRecordSchema,
  adapterRecordText,
  type BundleManifest,
  type BundleQuality,
  type FileRecord,
  manifestSchema,
  parseAdapterRecord,
  parseManifest,
} from "./manifest.ts";
export * from "./noise.ts";
export { type OnnxAdapter, type OnnxAdapterParameter, readOnnxAdapter, writeOnnxAdapter } from "./onnx-adapter.ts";
export { type OpenedBundle, openBundle, type TrustOptions } from "./open-bundle.ts";
export { type OpenOptions, openPipeline } from "./open-pipeline.ts";
export type { OrtModule, TensorData } from "./ort.ts";
export { Pipeline, type Selection } from "./pipeline.ts";
export * from "./schedulers/index.ts";
export { graphHash } from "./sha256.ts";
export {
  publicKeyBytes,
  signatureSchema,
  signatureSuffix,
  signatureText,
  signedBytes,
  verifySignature,
} from "./signature.ts";
export { adaptersOfTask, type Task, type TasksFile, tasksFileSchema, tasksOfAdapters } from "./tasks.ts";
export type { TextEncoder } from "./text-encoder.ts";
export { loadTokenizer, type PromptTokenizer, type TokenizerOptions } from "./tokenizer.ts";
