export {
  clipDirectionalSimilarity,
  clipScore,
  cosineSimilarity,
  embedImage,
  embedText,
  type ImageEmbeddingOptions,
  type TextEmbeddingOptions,
} from "./clip.ts";
export { decibels, jensenShannonDivergence, sqnr } from "./divergence.ts";
export { type FeatureOptions, fid, type ImageFeatures, imageFeatures } from "./fid.ts";
export { fitGaussian, frechetDistance, frechetDistanceOfGaussians, type Gaussian } from "./frechet.ts";
export type { Image, MetricChannels } from "./image.ts";
export { lpips } from "./lpips.ts";
export type { InputMetadata, MetricOutput, MetricSession } from "./network.ts";
export { meanAbsoluteError, psnr } from "./pixel.ts";
export type { Interpolation } from "./resize.ts";
export { MSSSIM_WEIGHTS, type MsssimResult, msssim, type SsimOptions, ssim } from "./ssim.ts";
export { type Ssimulacra2Options, ssimulacra2 } from "./ssimulacra2.ts";
