import { InputError } from "@quad-lora/base";
import type { OptionsOf, sigmaOptions, solverOptions, spacingOptions } from "./definition.ts";
import {
  createNoiseSchedule,
  flowMatching,
  interpolate,
  type Level,
  type NoiseSchedule,
  variancePreserving,
} from "./noise-schedule.ts";

type SpacingConfig = OptionsOf<ReturnType<typeof spacingOptions>> & { num_train_timesteps: number };
type Spacing = SpacingConfig["timestep_spacing"];
type SigmaConfig = SpacingConfig & OptionsOf<typeof sigmaOptions> & { final_sigmas_type?: "zero" | "sigma_min" };
type SolverConfig = OptionsOf<typeof solverOptions> & { lambda_min_clipped?: number };

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
export function solverTimesteps(config: SpacingConfig, steps: number, usable: number): number[] {
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

/** @param single - the value where there is only one */
export function linspace(start: number, end: number, count: number, single = end): number[] {
  if (count === 1) return [single];
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

/** Noise levels that fall by the same factor at every step. */
export function exponentialSigmas(highest: number, lowest: number, steps: number): number[] {
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
export interface SigmaSteps {
  readonly timesteps: number[];
  /** Descending, one per timestep, then the level after the last step. */
  readonly sigmas: Float64Array;
}

/** Timesteps and sigmas of the Euler and Heun schedulers. */
export function sigmaSteps(config: SigmaConfig, schedule: NoiseSchedule, steps: number): SigmaSteps {
  const { timestep_spacing: spacing, num_train_timesteps: trainTimesteps, steps_offset: offset } = config;
  const spaced = spacedTimesteps(spacing, steps, trainTimesteps, offset).map(Math.fround);
  const own = spaced.map((timestep) => interpolate(schedule.sigmas, timestep));
  const respaced = respacedSigmas(config, own[0], own[own.length - 1], steps);
  const timesteps = respaced?.map((sigma) => Math.fround(timestepOfSigma(sigma, schedule.sigmas))) ?? spaced;
  const last = config.final_sigmas_type === "sigma_min" ? schedule.sigmas[0] : 0;
  return { timesteps, sigmas: Float64Array.from([...(respaced ?? own), last], Math.fround) };
}

/** Steps of a multistep solver. */
export interface SolverSteps {
  readonly timesteps: number[];
  /** One per timestep, and one after the last step, which follows `final_sigmas_type`. */
  readonly levels: Level[];
}

export function solverSteps(config: SolverConfig, steps: number, file: string | undefined): SolverSteps {
  refuseMixedFlow(config, file);
  return config.use_flow_sigmas ? flowSolverSteps(config, steps) : diffusionSolverSteps(config, steps);
}

function diffusionSolverSteps(config: SolverConfig, steps: number): SolverSteps {
  const all = createNoiseSchedule(config, true).sigmas;
  const lowestLambda = config.lambda_min_clipped ?? Number.NEGATIVE_INFINITY;
  // lambda = log(alpha / sigma) falls with the timestep, so the usable timesteps are the first ones.
  const usable = all.filter((sigma) => -Math.log(sigma) >= lowestLambda).length;
  const spaced = solverTimesteps(config, steps, usable);
  const respaced = respacedSigmas(config, all[all.length - 1], all[0], steps);
  const whole = config.use_karras_sigmas ? roundHalfToEven : Math.floor;
  const timesteps = respaced?.map((sigma) => whole(timestepOfSigma(sigma, all))) ?? spaced;
  const sigmas = respaced ?? spaced.map((timestep) => interpolate(all, timestep));
  const last = config.final_sigmas_type === "zero" ? 0 : respaced ? respaced[respaced.length - 1] : all[0];
  return { timesteps, levels: [...sigmas, last].map((sigma) => variancePreserving(Math.fround(sigma))) };
}

/** The first level is a little below pure noise, whose log signal-to-noise ratio would be infinite. */
function flowSolverSteps(config: SolverConfig, steps: number): SolverSteps {
  const { num_train_timesteps: trainTimesteps, flow_shift: shift } = config;
  const sigmas = linspace(1 - 1 / trainTimesteps, 0, steps + 1)
    .slice(0, steps)
    .map((sigma) => shiftedSigma(sigma, shift));
  const last = config.final_sigmas_type === "zero" ? 0 : sigmas[sigmas.length - 1];
  return {
    timesteps: sigmas.map((sigma) => Math.floor(sigma * trainTimesteps)),
    levels: [...sigmas, last].map((sigma) => flowMatching(Math.fround(sigma))),
  };
}

function refuseMixedFlow(config: SolverConfig, file: string | undefined): void {
  const { use_flow_sigmas: isFlow, prediction_type: predicts } = config;
  const respaced = config.use_karras_sigmas || config.use_exponential_sigmas;
  if (isFlow && respaced) {
    throw new InputError({
      what: "two ways to choose noise levels",
      file,
      where: "use_flow_sigmas",
      expected: "use_karras_sigmas and use_exponential_sigmas switched off",
      fix: "Switch one of them off.",
    });
  }
  if (isFlow === (predicts === "flow_prediction")) return;
  throw new InputError({
    what: "noise levels and prediction do not go together",
    file,
    where: "prediction_type",
    expected: isFlow ? '"flow_prediction", as use_flow_sigmas is switched on' : "use_flow_sigmas switched on",
    got: JSON.stringify(predicts),
    fix: "Use the scheduler configuration of the model.",
  });
}

/** Descending timesteps of a distilled model, evenly chosen from those that it was distilled for (LCM and TCD). */
export function distilledTimesteps(
  config: { num_train_timesteps: number; original_inference_steps: number },
  steps: number,
  file: string | undefined,
): number[] {
  const { original_inference_steps: originalSteps, num_train_timesteps: trainTimesteps } = config;
  if (originalSteps > trainTimesteps || steps > originalSteps) {
    throw new InputError({
      what: "too many steps",
      file,
      where: "original_inference_steps",
      expected: "steps <= original_inference_steps <= num_train_timesteps",
      got: `${steps}, ${originalSteps}, ${trainTimesteps}`,
      fix: "Use fewer steps.",
    });
  }
  const stride = Math.floor(trainTimesteps / originalSteps);
  return Array.from({ length: steps }, (_, step) => {
    const skipped = Math.floor((step * originalSteps) / steps);
    return (originalSteps - skipped) * stride - 1;
  });
}

/** Standard deviation of the start noise of a sampler whose states are `x0 + sigma * noise`. */
export function sigmaInitNoise(config: { timestep_spacing: Spacing }, sigmas: Float64Array): number {
  return config.timestep_spacing === "leading" ? Math.sqrt(sigmas[0] ** 2 + 1) : sigmas[0];
}
