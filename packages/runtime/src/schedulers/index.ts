import { InputError } from "@quad-lora/base";
import { checkConfig, type SchedulerConfig } from "./config.ts";
import { ddim } from "./ddim.ts";
import type { ScheduleRequest, SchedulerDefinition } from "./definition.ts";
import { dpmSolver } from "./dpm-solver.ts";
import { euler } from "./euler.ts";
import { eulerAncestral } from "./euler-ancestral.ts";
import { flowMatchEuler } from "./flow-match-euler.ts";
import { heun } from "./heun.ts";
import { lcm } from "./lcm.ts";
import { pndm } from "./pndm.ts";
import type { Level, Scheduler } from "./scheduler.ts";
import { tcd } from "./tcd.ts";
import { uniPc } from "./unipc.ts";

export { parseSchedulerConfigText, type SchedulerConfig } from "./config.ts";
export type { ScheduleRequest } from "./definition.ts";
export { type Level, type PredictionType, type Scheduler, type TargetWeights, targetWeights } from "./scheduler.ts";

/** All schedulers. */
const definitions: readonly SchedulerDefinition[] = [
  ddim,
  dpmSolver,
  eulerAncestral,
  euler,
  flowMatchEuler,
  heun,
  lcm,
  pndm,
  tcd,
  uniPc,
];

/** Values of `_class_name` that {@link parseSchedulerConfig} accepts. */
export const schedulerClasses: readonly string[] = definitions.flatMap(({ classes }) => classes);

/**
 * Checks the content of a `scheduler_config.json` and fills in the defaults of its class.
 * Null counts as absent, keys that start with an underscore are notes. Keys that a class does not read are left alone, as
 * diffusers does, unless they switch on something that would change the picture.
 * @throws InputError on an unknown class, a wrong value, or an option that is switched on and not implemented
 */
export function parseSchedulerConfig(config: unknown, file?: string): SchedulerConfig {
  return checkConfig(definitions, config, file).config;
}

/**
 * Makes a sampler from the content of a diffusers `scheduler_config.json`. Trajectories match diffusers 0.24, those of flow
 * matching 0.32.
 * @param config - parsed JSON; see {@link parseSchedulerConfig} and, for text, {@link parseSchedulerConfigText}
 * @param steps - sampling steps, from 1 to the number of training timesteps
 * @param options - `file` names the configuration in errors
 * @throws InputError on a configuration that is wrong or asks for something not implemented, or on wrong steps
 */
export function createScheduler(
  config: unknown,
  steps: number,
  options: Omit<ScheduleRequest, "steps"> = {},
): Scheduler {
  const { file } = options;
  const { definition, config: checked } = checkConfig(definitions, config, file);
  if (!Number.isInteger(steps) || steps < 1 || steps > checked.num_train_timesteps) {
    throw new InputError({
      what: "wrong number of steps",
      file,
      expected: `an integer in 1..${checked.num_train_timesteps} (num_train_timesteps)`,
      got: String(steps),
    });
  }
  return definition.create(checked, { ...options, steps });
}

/**
 * Noise levels by timestep, for losses on noised samples: `x_t = alpha * x0 + sigma * noise`.
 * @param config - content of `scheduler_config.json`
 * @returns a function of the timestep in [0, num_train_timesteps - 1], for flow matching up to num_train_timesteps; outside,
 *   it throws a RangeError
 * @throws InputError as {@link parseSchedulerConfig}
 */
export function alphaSigma(config: unknown, options: { file?: string } = {}): (timestep: number) => Level {
  const { definition, config: checked } = checkConfig(definitions, config, options.file);
  return definition.levels(checked);
}
