import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { betaOptions, type OptionsOf, type ScheduleRequest, zeroSnrOptions } from "./definition.ts";

/** Models that were distilled to few steps: LCM and TCD. */
export const consistencyOptions = {
  ...betaOptions,
  ...zeroSnrOptions,
  beta_start: z._default(betaOptions.beta_start.def.innerType, 0.00085),
  beta_end: z._default(betaOptions.beta_end.def.innerType, 0.012),
  beta_schedule: z._default(betaOptions.beta_schedule.def.innerType, "scaled_linear"),
  /** Steps of the distillation, among which the timesteps are chosen. */
  original_inference_steps: z._default(z.int().check(z.minimum(1), z.maximum(100_000)), 50),
};

/** Descending timesteps, evenly chosen from those that the model was distilled for. */
export function distilledTimesteps(
  config: OptionsOf<typeof consistencyOptions>,
  { steps, file }: ScheduleRequest,
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
