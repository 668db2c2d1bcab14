import { InputError } from "@quad-lora/base";
import { multiplyByTransposed, transpose } from "./matrix-product.ts";
import { semidefiniteFactor, symmetricEigenvalues } from "./symmetric.ts";

/** A multivariate normal distribution. */
export interface Gaussian {
  /** `[dim]` */
  mean: Float64Array;
  /** `[dim, dim]` row-major, symmetric positive semidefinite. */
  covariance: Float64Array;
}

/** A Gaussian as its mean and rows `[rank, dim]` with `rows^T rows = covariance`. */
interface FactoredGaussian {
  mean: Float64Array;
  rows: Float64Array;
  rank: number;
}

/**
 * Frechet distance between Gaussians fitted to two feature sets (Heusel et al. 2017; Dowson, Landau 1982):
 * `|m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))`, covariances with divisor N - 1. With Inception features it is
 * the FID. Fewer samples than features are fine numerically, but FID is biased upwards for few samples: compare only
 * equal counts. The time grows with the cube of the smaller of samples and features; 5000 x 2048 takes a minute or two.
 *
 * @param featuresA - `[samples, dim]` row-major; so `featuresB`; the sample counts may differ.
 * @returns the squared distance, at least 0.
 * @throws InputError when a length is not a multiple of `dim`, a set has fewer than two samples, or a value is not finite.
 */
export function frechetDistance(
  featuresA: Float64Array | Float32Array,
  featuresB: Float64Array | Float32Array,
  dim: number,
): number {
  return distance(fitFactored(featuresA, dim, "first feature set"), fitFactored(featuresB, dim, "second feature set"));
}

/**
 * The same between two given Gaussians, for example stored statistics of a reference set.
 *
 * @throws InputError when shapes disagree or a covariance is not positive semidefinite.
 */
export function frechetDistanceOfGaussians(a: Gaussian, b: Gaussian): number {
  if (a.mean.length !== b.mean.length)
    throw new InputError({
      what: "the two Gaussians differ in dimension",
      expected: String(a.mean.length),
      got: String(b.mean.length),
      fix: "Use statistics of one feature network.",
    });
  return distance(factor(a, "first covariance"), factor(b, "second covariance"));
}

/**
 * Mean and covariance (divisor N - 1) of features `[samples, dim]`.
 *
 * @throws InputError as {@link frechetDistance}.
 */
export function fitGaussian(features: Float64Array | Float32Array, dim: number): Gaussian {
  const { mean, rows, rank } = centre(features, dim, "feature set");
  return { mean, covariance: covarianceOf(rows, rank, dim) };
}

/**
 * Neither covariances' product nor its root is needed: with `S_a = F^T F` and `S_b = G^T G`, the eigenvalues of
 * `S_a S_b` are the squared singular values of `F G^T`, so the trace of the root is the sum of those singular values.
 * They come from the smaller Gram matrix, symmetric and semidefinite also where the covariances are singular.
 */
function distance(a: FactoredGaussian, b: FactoredGaussian): number {
  const dim = a.mean.length;
  let shift = 0;
  for (let i = 0; i < dim; i++) shift += (a.mean[i] - b.mean[i]) ** 2;
  const [small, large] = a.rank <= b.rank ? [a, b] : [b, a];
  const cross = multiplyByTransposed(small.rows, small.rank, large.rows, large.rank, dim);
  const gram = multiplyByTransposed(cross, small.rank, cross, small.rank, large.rank);
  let root = 0;
  for (const value of symmetricEigenvalues(gram, small.rank)) root += Math.sqrt(Math.max(value, 0));
  const traces = squareSum(a.rows) + squareSum(b.rows); // Tr(F^T F) = sum of squares of F
  return Math.max(shift + traces - 2 * root, 0);
}

function fitFactored(features: Float64Array | Float32Array, dim: number, name: string): FactoredGaussian {
  const centred = centre(features, dim, name);
  if (centred.rank <= dim) return centred;
  return factor({ mean: centred.mean, covariance: covarianceOf(centred.rows, centred.rank, dim) }, name);
}

function factor({ mean, covariance }: Gaussian, name: string): FactoredGaussian {
  const dim = mean.length;
  if (covariance.length !== dim * dim)
    throw new InputError({
      what: "a covariance does not fit its mean",
      where: name,
      expected: `${dim * dim} values ([${dim}, ${dim}])`,
      got: `${covariance.length} values`,
    });
  if (!covariance.every(Number.isFinite) || !mean.every(Number.isFinite))
    throw new InputError({
      what: "a Gaussian holds a value that is not finite",
      where: name,
      fix: "Look for overflow in the feature network, 16-bit floats first.",
    });
  const factored = semidefiniteFactor(covariance, dim);
  if (!factored)
    throw new InputError({
      what: "a covariance is not positive semidefinite",
      where: name,
      fix: "Pass a symmetric covariance matrix, row-major.",
    });
  return { mean, ...factored };
}

/** Rows `(x_i - mean) / sqrt(N - 1)`, whose Gram matrix over columns is the covariance. */
function centre(features: Float64Array | Float32Array, dim: number, name: string): FactoredGaussian {
  const samples = features.length / dim;
  if (!Number.isInteger(dim) || dim < 1 || !Number.isInteger(samples) || samples < 2)
    throw new InputError({
      what: "features do not fit their dimension",
      where: name,
      expected: `at least 2 samples of ${dim} values`,
      got: `${features.length} values`,
      fix: "Pass [samples, dim] row-major features.",
    });
  const mean = new Float64Array(dim);
  for (let i = 0; i < samples; i++) for (let j = 0; j < dim; j++) mean[j] += features[i * dim + j] / samples;
  const column = mean.findIndex((value) => !Number.isFinite(value));
  if (column >= 0)
    throw new InputError({
      what: "features must be finite numbers",
      where: `${name}, feature ${column}`,
      fix: "Look for overflow in the feature network, 16-bit floats first.",
    });
  const scale = 1 / Math.sqrt(samples - 1);
  const rows = Float64Array.from(features, (value, i) => (value - mean[i % dim]) * scale);
  return { mean, rows, rank: samples };
}

/** `rows^T rows`, `[dim, dim]`. */
function covarianceOf(rows: Float64Array, count: number, dim: number): Float64Array {
  const columns = transpose(rows, count, dim);
  return multiplyByTransposed(columns, dim, columns, dim, count);
}

function squareSum(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value * value;
  return sum;
}
