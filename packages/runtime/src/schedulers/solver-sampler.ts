import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import {
  betaOptions,
  type OptionsOf,
  positive,
  type ScheduleRequest,
  sigmaOptions,
  spacingOptions,
  trainingOptions,
  zeroSnrOptions,
} from "./definition.ts";
import {
  betaLevels,
  createNoiseSchedule,
  flowLevels,
  flowMatching,
  interpolate,
  variancePreserving,
} from "./noise-schedule.ts";
import { Sampler } from "./sampler.ts";
import { History, type Level } from "./scheduler.ts";
import { linspace, respacedSigmas, roundHalfToEven, shiftedSigma, timestepOfSigma, trailing } from "./timesteps.ts";

/** Options of {@link SolverSampler}. */
export const solverOptions = {
  ...betaOptions,
  ...zeroSnrOptions,
  ...spacingOptions("linspace"),
  ...sigmaOptions,
  prediction_type: trainingOptions.prediction_type,
  solver_order: z._default(z.int().check(z.minimum(1), z.maximum(3)), 2),
  solver_type: z.optional(z.enum(["midpoint", "heun", "logrho", "bh1", "bh2"])),
  lower_order_final: z._default(z.boolean(), true),
  /**
   * Noise level after the last step. Diffusers from 0.25 on always writes this key, so a file without it comes
   * from an older version, which meant "sigma_min".
   */
  final_sigmas_type: z.optional(z.enum(["zero", "sigma_min"])),
  /** Noise levels of flow matching, whose states are `(1 - sigma) x0 + sigma noise`. */
  use_flow_sigmas: z._default(z.boolean(), false),
  flow_shift: z._default(positive, 1),
};

type SolverConfig = OptionsOf<typeof solverOptions> & { lambda_min_clipped?: number };

/** For {@link SchedulerDefinition.levels}. */
export function solverLevels(config: SolverConfig): (timestep: number) => Level {
  return config.use_flow_sigmas ? flowLevels(config) : betaLevels(config);
}

/**
 * A multistep solver of diffusion or flow matching (DPM-Solver++ and UniPC). It works on predictions of x0 in the half log
 * signal-to-noise ratio lambda = log(alpha / sigma).
 */
export abstract class SolverSampler<Config extends SolverConfig> extends Sampler {
  protected readonly config: Config;
  /** Predictions of x0, as many as the order. */
  protected readonly originals: History;
  readonly #levels: readonly Level[];

  constructor(config: Config, { steps, file }: ScheduleRequest) {
    refuseMixedFlow(config, file);
    const { timesteps, levels } = config.use_flow_sigmas ? flowSteps(config, steps) : diffusionSteps(config, steps);
    super(config.prediction_type, timesteps);
    this.config = config;
    this.originals = new History(config.solver_order);
    this.#levels = levels;
  }

  /** There is one more than evaluations: the level after the last step, which follows `final_sigmas_type`. */
  protected level(index: number): Level {
    return this.#levels[index];
  }

  protected lambda(index: number): number {
    const { alpha, sigma } = this.#levels[index];
    return Math.log(alpha / sigma);
  }
}

interface SolverSteps {
  readonly timesteps: number[];
  /** One more than timesteps: {@link SolverSampler.level}. */
  readonly levels: Level[];
}

function diffusionSteps(config: SolverConfig, steps: number): SolverSteps {
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
function flowSteps(config: SolverConfig, steps: number): SolverSteps {
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

/**
 * Descending timesteps. Solvers end on a last noise level of their own, so that "linspace" and "leading" divide the
 * schedule into one interval more and leave the lowest timestep out.
 * @param usable - number of training timesteps from 0 on that may be used
 */
function solverTimesteps(config: SolverConfig, steps: number, usable: number): number[] {
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
