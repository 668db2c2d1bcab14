import type { SchedulerConfig } from "./config.ts";
import { interpolate, type NoiseSchedule } from "./noise-schedule.ts";

type Spacing = SchedulerConfig["timestep_spacing"];

/** Rounds halves to the even neighbour, as NumPy does. */
export function roundHalfToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Descending timesteps of the three spacings of Lin et al. (2024), table 2.
 * @param steps - number of entries
 * @param trainTimesteps - length of the training schedule
 */
export function spacedTimesteps(spacing: Spacing, steps: number, trainTimesteps: number, offset: number): number[] {
  switch (spacing) {
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
 * Descending timesteps for solvers that end on a last noise level of their own, so that "linspace" and "leading"
 * divide the schedule into one interval more and leave the lowest timestep out (DPM-Solver and UniPC).
 * @param usable - number of training timesteps from 0 on that may be used
 */
export function solverTimesteps(config: SchedulerConfig, steps: number, usable: number): number[] {
  switch (config.timestep_spacing) {
    case "linspace":
      return linspace(usable - 1, 0, steps + 1)
        .slice(0, steps)
        .map(roundHalfToEven);
    case "leading": {
      const ratio = Math.floor(usable / (steps + 1));
      return Array.from({ length: steps }, (_, index) => (steps - index) * ratio + config.steps_offset);
    }
    case "trailing":
      return trailing(steps, usable, config.num_train_timesteps);
  }
}

function trailing(steps: number, start: number, trainTimesteps: number): number[] {
  const ratio = trainTimesteps / steps;
  return Array.from({ length: steps }, (_, index) => roundHalfToEven(start - index * ratio) - 1).filter(
    (timestep) => timestep >= 0,
  );
}

function linspace(start: number, end: number, count: number): number[] {
  if (count === 1) return [end];
  return Array.from({ length: count }, (_, index) => start + ((end - start) * index) / (count - 1));
}

/**
 * Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), equation 5, rho = 7.
 * @returns descending sigmas
 */
export function karrasSigmas(highest: number, lowest: number, steps: number): number[] {
  const rho = 7;
  const from = highest ** (1 / rho);
  const to = lowest ** (1 / rho);
  return Array.from({ length: steps }, (_, index) => (from + (index / Math.max(steps - 1, 1)) * (to - from)) ** rho);
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
export interface SigmaSteps {
  readonly timesteps: number[];
  /** Descending, one per timestep, then 0. */
  readonly sigmas: Float64Array;
}

/** Timesteps and sigmas of the Euler and Heun schedulers. */
export function sigmaSteps(config: SchedulerConfig, schedule: NoiseSchedule, steps: number): SigmaSteps {
  const { timestep_spacing: spacing, num_train_timesteps: trainTimesteps, steps_offset: offset } = config;
  let timesteps = spacedTimesteps(spacing, steps, trainTimesteps, offset).map(Math.fround);
  let sigmas = timesteps.map((timestep) => interpolate(schedule.sigmas, timestep));
  if (config.use_karras_sigmas) {
    sigmas = karrasSigmas(config.sigma_max ?? sigmas[0], config.sigma_min ?? sigmas[sigmas.length - 1], steps);
    timesteps = sigmas.map((sigma) => Math.fround(timestepOfSigma(sigma, schedule.sigmas)));
  }
  return { timesteps, sigmas: Float64Array.from([...sigmas, 0], Math.fround) };
}

/** Timesteps and sigmas of the multistep solvers; the last sigma follows `final_sigmas_type`. */
export function solverSteps(config: SchedulerConfig, schedule: NoiseSchedule, steps: number): SigmaSteps {
  const all = schedule.sigmas;
  // lambda = log(alpha / sigma) falls with the timestep, so the usable timesteps are the first ones.
  const usable = all.filter((sigma) => -Math.log(sigma) >= config.lambda_min_clipped).length;
  let timesteps = solverTimesteps(config, steps, usable);
  let sigmas = timesteps.map((timestep) => interpolate(all, timestep));
  let last = all[0];
  if (config.use_karras_sigmas) {
    sigmas = karrasSigmas(config.sigma_max ?? all[all.length - 1], config.sigma_min ?? all[0], steps);
    timesteps = sigmas.map((sigma) => roundHalfToEven(timestepOfSigma(sigma, all)));
    last = sigmas[sigmas.length - 1];
  }
  if (config.final_sigmas_type === "zero") last = 0;
  return { timesteps, sigmas: Float64Array.from([...sigmas, last], Math.fround) };
}

/** Standard deviation of the start noise of a sampler whose states are `x0 + sigma * noise`. */
export function sigmaInitNoise(config: SchedulerConfig, sigmas: Float64Array): number {
  return config.timestep_spacing === "leading" ? Math.sqrt(sigmas[0] ** 2 + 1) : sigmas[0];
}
