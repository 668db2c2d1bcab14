import type { OptionsOf, sigmaOptions, spacingOptions } from "./definition.ts";
import { interpolate, type NoiseSchedule } from "./noise-schedule.ts";

/** What {@link spacedTimesteps} reads. */
export type SpacingConfig = OptionsOf<ReturnType<typeof spacingOptions>> & { num_train_timesteps: number };
type SigmaConfig = SpacingConfig & OptionsOf<typeof sigmaOptions> & { final_sigmas_type?: "zero" | "sigma_min" };

/** Rounds halves to the even neighbour, as NumPy does. */
export function roundHalfToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Descending timesteps, one per step, in the three spacings of Lin et al. (2024), table 2. */
export function spacedTimesteps(config: SpacingConfig, steps: number): number[] {
  const { num_train_timesteps: trainTimesteps, steps_offset: offset } = config;
  switch (config.timestep_spacing) {
    case "linspace":
      return linspace(trainTimesteps - 1, 0, steps);
    case "leading": {
      const ratio = Math.floor(trainTimesteps / steps);
      return Array.from({ length: steps }, (_, index) => (steps - 1 - index) * ratio + offset);
    }
    case "trailing":
      return trailing(steps, trainTimesteps, trainTimesteps);
  }
}

/**
 * The spacing "trailing": every timestep is the last of its interval.
 * @param start - one above the highest
 */
export function trailing(steps: number, start: number, trainTimesteps: number): number[] {
  const ratio = trainTimesteps / steps;
  return Array.from({ length: steps }, (_, index) => roundHalfToEven(start - index * ratio) - 1).filter(
    (timestep) => timestep >= 0,
  );
}

/** @param single - the value where there is only one */
export function linspace(start: number, end: number, count: number, single = end): number[] {
  if (count === 1) return [single];
  return Array.from({ length: count }, (_, index) => start + ((end - start) * index) / (count - 1));
}

/**
 * Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), equation 5, rho = 7.
 * @returns descending sigmas
 */
function karrasSigmas(highest: number, lowest: number, steps: number): number[] {
  const rho = 7;
  const from = highest ** (1 / rho);
  const to = lowest ** (1 / rho);
  return Array.from({ length: steps }, (_, index) => (from + (index / Math.max(steps - 1, 1)) * (to - from)) ** rho);
}

/** Noise levels that fall by the same factor at every step. */
function exponentialSigmas(highest: number, lowest: number, steps: number): number[] {
  return linspace(Math.log(lowest), Math.log(highest), steps).reverse().map(Math.exp);
}

/** Sigmas between two bounds as the options spread them; undefined where they leave the spacing of the timesteps. */
export function respacedSigmas(
  config: OptionsOf<typeof sigmaOptions>,
  highest: number,
  lowest: number,
  steps: number,
): number[] | undefined {
  const bounds = [config.sigma_max ?? highest, config.sigma_min ?? lowest] as const;
  if (config.use_karras_sigmas) return karrasSigmas(...bounds, steps);
  return config.use_exponential_sigmas ? exponentialSigmas(...bounds, steps) : undefined;
}

/** Flow matching's shift towards noise: Esser et al., "Scaling Rectified Flow Transformers" (2024), equation 23. */
export function shiftedSigma(sigma: number, shift: number): number {
  return (shift * sigma) / (1 + (shift - 1) * sigma);
}

/** The timestep, possibly fractional, at which the training schedule has this sigma (linear in log sigma). */
export function timestepOfSigma(sigma: number, sigmas: Float64Array): number {
  let low = 0;
  while (low < sigmas.length - 2 && sigmas[low + 1] <= sigma) low++;
  const lowLog = Math.log(sigmas[low]);
  const weight = (lowLog - Math.log(Math.max(sigma, 1e-10))) / (lowLog - Math.log(sigmas[low + 1]));
  return low + Math.min(Math.max(weight, 0), 1);
}

/** Steps of a scheduler that works in sigma / alpha. */
interface SigmaSteps {
  readonly timesteps: number[];
  /** Descending, one per timestep, then the level after the last step. */
  readonly sigmas: Float64Array;
}

/** Timesteps and sigmas of the Euler and Heun schedulers. */
export function sigmaSteps(config: SigmaConfig, schedule: NoiseSchedule, steps: number): SigmaSteps {
  const spaced = spacedTimesteps(config, steps).map(Math.fround);
  const own = spaced.map((timestep) => interpolate(schedule.sigmas, timestep));
  const respaced = respacedSigmas(config, own[0], own[own.length - 1], steps);
  const timesteps = respaced?.map((sigma) => Math.fround(timestepOfSigma(sigma, schedule.sigmas))) ?? spaced;
  const last = config.final_sigmas_type === "sigma_min" ? schedule.sigmas[0] : 0;
  return { timesteps, sigmas: Float64Array.from([...(respaced ?? own), last], Math.fround) };
}

/** Standard deviation of the start noise of a sampler whose states are `x0 + sigma * noise`. */
export function sigmaInitNoise(config: Pick<SpacingConfig, "timestep_spacing">, sigmas: Float64Array): number {
  return config.timestep_spacing === "leading" ? Math.sqrt(sigmas[0] ** 2 + 1) : sigmas[0];
}
