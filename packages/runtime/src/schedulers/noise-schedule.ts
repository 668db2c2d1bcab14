import type { betaOptions, OptionsOf } from "./definition.ts";
import type { Level } from "./scheduler.ts";

/** What {@link createNoiseSchedule} reads. */
export type BetaConfig = Omit<OptionsOf<typeof betaOptions>, "prediction_type"> & { rescale_betas_zero_snr?: boolean };

/**
 * Noise levels of the training timesteps of a variance-preserving process `x_t = alpha * x0 + sigma * noise`
 * with `alpha^2 + sigma^2 = 1`.
 */
export interface NoiseSchedule {
  /** `alpha_t^2`, one per training timestep, rounded to float32 as PyTorch keeps it. */
  readonly alphasCumprod: Float64Array;
  /** `sigma_t / alpha_t`, one per training timestep, ascending. */
  readonly sigmas: Float64Array;
}

/** The smallest float16: keeps the ratio sigma / alpha finite when the last alpha is zero, as in diffusers. */
const smallestAlphaCumprod = 2 ** -24;

/**
 * Betas to noise levels.
 * @param finiteSigmas - replaces a zero last alpha by a tiny one, for schedulers that work in sigma / alpha
 */
export function createNoiseSchedule(config: BetaConfig, finiteSigmas: boolean): NoiseSchedule {
  let betas = createBetas(config);
  if (config.rescale_betas_zero_snr) betas = rescaleToZeroTerminalSnr(betas);
  const alphasCumprod = cumulativeAlphas(betas);
  if (finiteSigmas && config.rescale_betas_zero_snr) alphasCumprod[alphasCumprod.length - 1] = smallestAlphaCumprod;
  const sigmas = alphasCumprod.map((alpha) => Math.fround(Math.sqrt((1 - alpha) / alpha)));
  return { alphasCumprod, sigmas };
}

/** Float32 steps, because the references accumulate float32 betas and the difference shows after a thousand factors. */
function createBetas(config: BetaConfig): Float64Array {
  const count = config.num_train_timesteps;
  if (config.trained_betas) return Float64Array.from(config.trained_betas, Math.fround);
  switch (config.beta_schedule) {
    case "linear":
      return float32Linspace(config.beta_start, config.beta_end, count);
    case "scaled_linear":
      return float32Linspace(Math.sqrt(config.beta_start), Math.sqrt(config.beta_end), count).map((root) =>
        Math.fround(root * root),
      );
    case "squaredcos_cap_v2": {
      // Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), equation 17.
      const alphaBar = (time: number) => Math.cos((((time + 0.008) / 1.008) * Math.PI) / 2) ** 2;
      return Float64Array.from({ length: count }, (_, step) =>
        Math.fround(Math.min(1 - alphaBar((step + 1) / count) / alphaBar(step / count), 0.999)),
      );
    }
  }
}

/** Counts from both ends, so that both are exact. */
function float32Linspace(start: number, end: number, count: number): Float64Array {
  const step = Math.fround((Math.fround(end) - Math.fround(start)) / (count - 1));
  return Float64Array.from({ length: count }, (_, index) =>
    index < count / 2
      ? Math.fround(Math.fround(start) + step * index)
      : Math.fround(Math.fround(end) - step * (count - 1 - index)),
  );
}

function cumulativeAlphas(betas: Float64Array): Float64Array {
  let product = 1;
  return betas.map((beta) => {
    product *= Math.fround(1 - beta);
    return Math.fround(product);
  });
}

/** Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2024), algorithm 1. */
function rescaleToZeroTerminalSnr(betas: Float64Array): Float64Array {
  const roots = cumulativeAlphas(betas).map((alpha) => Math.fround(Math.sqrt(alpha)));
  const first = roots[0];
  const last = roots[roots.length - 1];
  const scale = Math.fround(first / Math.fround(first - last));
  const rescaled = roots.map((root) => Math.fround(Math.fround(root - last) * scale) ** 2);
  return rescaled.map((alpha, step) => Math.fround(1 - (step === 0 ? alpha : alpha / rescaled[step - 1])));
}

/** Levels of a schedule of betas. Between two whole timesteps, sigma / alpha is interpolated, as sigma-based schedulers do. */
export function betaLevels(config: BetaConfig): (timestep: number) => Level {
  const { alphasCumprod, sigmas } = createNoiseSchedule(config, false);
  return (timestep) => {
    checkInside(timestep, alphasCumprod.length - 1);
    if (Number.isInteger(timestep)) return levelOf(alphasCumprod[timestep]);
    return variancePreserving(interpolate(sigmas, timestep));
  };
}

/** Levels of flow matching, where timesteps are noise levels and a shift only says which of them are visited. */
export function flowLevels(config: { num_train_timesteps: number }): (timestep: number) => Level {
  return (timestep) => {
    checkInside(timestep, config.num_train_timesteps);
    return flowMatching(timestep / config.num_train_timesteps);
  };
}

function checkInside(timestep: number, last: number): void {
  if (!(timestep >= 0 && timestep <= last)) throw new RangeError(`timestep ${timestep} is outside 0..${last}`);
}

/** The level whose `alpha^2` this is. */
export function levelOf(alphaCumprod: number): Level {
  return { alpha: Math.sqrt(alphaCumprod), sigma: Math.sqrt(1 - alphaCumprod) };
}

/** `alpha^2` at a timestep; before timestep 0 it is 1 or that of timestep 0, as `set_alpha_to_one` says. */
export function alphaCumprodAt(
  alphasCumprod: Float64Array,
  config: { set_alpha_to_one: boolean },
  timestep: number,
): number {
  if (timestep >= 0) return alphasCumprod[timestep];
  return config.set_alpha_to_one ? 1 : alphasCumprod[0];
}

/** Flow matching's level: `(1 - sigma) x0 + sigma noise` (Lipman et al., "Flow Matching for Generative Modeling", 2023). */
export function flowMatching(sigma: number): Level {
  return { alpha: 1 - sigma, sigma };
}

/** Splits the ratio sigma / alpha into the alpha and sigma of the variance-preserving process. */
export function variancePreserving(ratio: number): Level {
  if (ratio === Number.POSITIVE_INFINITY) return { alpha: 0, sigma: 1 };
  const alpha = 1 / Math.sqrt(ratio * ratio + 1);
  return { alpha, sigma: ratio * alpha };
}

/** Linear interpolation in an array by position; positions outside take the value of the nearer end. */
export function interpolate(values: ArrayLike<number>, position: number): number {
  const clamped = Math.min(Math.max(position, 0), values.length - 1);
  const low = Math.min(Math.floor(clamped), values.length - 2);
  const weight = clamped - low;
  if (weight === 0) return values[low];
  return weight === 1 ? values[low + 1] : values[low] + weight * (values[low + 1] - values[low]);
}
