import { InputError } from "@quad-lora/base";
import { parseSchedulerConfig } from "./config.ts";
import { DdimScheduler } from "./ddim.ts";
import { DpmSolverScheduler } from "./dpm-solver.ts";
import { EulerScheduler } from "./euler.ts";
import { HeunScheduler } from "./heun.ts";
import { LcmScheduler } from "./lcm.ts";
import { PndmScheduler } from "./pndm.ts";
import type { Scheduler } from "./scheduler.ts";
import { UniPcScheduler } from "./unipc.ts";

export {
  type PredictionType,
  parseSchedulerConfig,
  parseSchedulerConfigText,
  type SchedulerClass,
  type SchedulerConfig,
  schedulerClasses,
} from "./config.ts";
export { alphaSigma } from "./noise-schedule.ts";
export type { Scheduler } from "./scheduler.ts";

/**
 * Makes a sampler from the content of a diffusers `scheduler_config.json`. Trajectories match diffusers 0.24.
 * @param config - parsed JSON; see {@link parseSchedulerConfig} and, for text, {@link parseSchedulerConfigText}
 * @param steps - sampling steps, from 1 to the number of training timesteps
 * @param options - `file` names the configuration in errors
 * @throws InputError on a configuration that is wrong or asks for something not implemented, or on wrong steps
 */
export function createScheduler(config: unknown, steps: number, options: { file?: string } = {}): Scheduler {
  const { file } = options;
  const parsed = parseSchedulerConfig(config, file);
  if (!Number.isInteger(steps) || steps < 1 || steps > parsed.num_train_timesteps) {
    throw new InputError({
      what: "wrong number of steps",
      file,
      expected: `an integer in 1..${parsed.num_train_timesteps} (num_train_timesteps)`,
      got: String(steps),
    });
  }
  switch (parsed._class_name) {
    case "DDIMScheduler":
      return new DdimScheduler(parsed, steps, file);
    case "DPMSolverMultistepScheduler":
      return new DpmSolverScheduler(parsed, steps);
    case "EulerAncestralDiscreteScheduler":
    case "EulerDiscreteScheduler":
      return new EulerScheduler(parsed, steps);
    case "HeunDiscreteScheduler":
      return new HeunScheduler(parsed, steps);
    case "LCMScheduler":
      return new LcmScheduler(parsed, steps, file);
    case "PNDMScheduler":
      return new PndmScheduler(parsed, steps, file);
    case "UniPCMultistepScheduler":
      return new UniPcScheduler(parsed, steps);
  }
}
