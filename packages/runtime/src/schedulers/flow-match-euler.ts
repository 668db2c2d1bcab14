import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import {
  defineScheduler,
  type OptionsOf,
  positive,
  type ScheduleRequest,
  sigmaOptions,
  trainingOptions,
} from "./definition.ts";
import { flowLevels, flowMatching } from "./noise-schedule.ts";
import { Sampler, type Step } from "./sampler.ts";
import { combine, type Level } from "./scheduler.ts";
import { linspace, respacedSigmas, shiftedSigma } from "./timesteps.ts";

const options = {
  ...trainingOptions,
  ...sigmaOptions,
  prediction_type: z._default(z.literal("flow_prediction"), "flow_prediction"),
  shift: z._default(positive, 1),
  /** A shift that grows with the picture, in place of `shift`. */
  use_dynamic_shifting: z._default(z.boolean(), false),
  base_shift: z._default(z.number(), 0.5),
  max_shift: z._default(z.number(), 1.15),
  base_image_seq_len: z._default(positive, 256),
  max_image_seq_len: z._default(positive, 4096),
  time_shift_type: z._default(z.enum(["exponential", "linear"]), "exponential"),
  /** Stretches the noise levels so that the last step starts here. */
  shift_terminal: z.optional(z.number().check(z.minimum(0), z.lt(1))),
  /** Predicts x0 at every step and adds new noise, in place of a step along the velocity. */
  stochastic_sampling: z._default(z.boolean(), false),
  invert_sigmas: z._default(z.literal(false), false),
};

type Config = OptionsOf<typeof options>;

export const flowMatchEuler = defineScheduler({
  classes: ["FlowMatchEulerDiscreteScheduler"],
  options,
  levels: flowLevels,
  create: (config, request) => new FlowMatchEulerScheduler(config, request),
});

/**
 * Euler's method for flow matching, whose states are `(1 - sigma) x0 + sigma noise`: Esser et al., "Scaling Rectified Flow
 * Transformers for High-Resolution Image Synthesis" (2024).
 */
class FlowMatchEulerScheduler extends Sampler {
  /** Descending, one per timestep, then 0. */
  readonly #sigmas: Float64Array;
  readonly #isStochastic: boolean;

  constructor(config: Config, request: ScheduleRequest) {
    const sigmas = noiseLevels(config, request).map(Math.fround);
    super(
      config.prediction_type,
      sigmas.map((sigma) => Math.fround(sigma * config.num_train_timesteps)),
    );
    this.#sigmas = Float64Array.from([...sigmas, 0]);
    this.#isStochastic = config.stochastic_sampling;
  }

  protected level(index: number): Level {
    return flowMatching(this.#sigmas[index]);
  }

  protected advance({ modelOutput, index, sample, out, noise }: Step): void {
    const sigma = this.#sigmas[index];
    const next = this.#sigmas[index + 1];
    if (!this.#isStochastic) {
      combine(sample, 1, modelOutput, next - sigma, out);
      return;
    }
    const drawn = next > 0 ? noise() : undefined;
    combine(sample, 1 - next, modelOutput, -sigma * (1 - next), out);
    if (drawn) combine(out, 1, drawn, next, out);
  }
}

function noiseLevels(config: Config, request: ScheduleRequest): number[] {
  const shift = shiftOf(config, request);
  const stretched = stretch((request.sigmas ?? trainedSigmas(config, request.steps)).map(shift), config.shift_terminal);
  return respacedSigmas(config, stretched[0], stretched[stretched.length - 1], request.steps) ?? stretched;
}

/** The range of the training schedule, which diffusers shifts by `shift` once before it shifts every level. */
function trainedSigmas(config: Config, steps: number): number[] {
  const lowest = 1 / config.num_train_timesteps;
  return linspace(1, config.use_dynamic_shifting ? lowest : shiftedSigma(lowest, config.shift), steps, 1);
}

function shiftOf(config: Config, { imageTokens, file }: ScheduleRequest): (sigma: number) => number {
  if (!config.use_dynamic_shifting) return (sigma) => shiftedSigma(sigma, config.shift);
  if (imageTokens === undefined) {
    throw new InputError({
      what: "the shift depends on the picture's size in tokens, which is not known here",
      file,
      where: "use_dynamic_shifting",
      expected: "false, or imageTokens beside it",
      got: "true",
      fix: "Pass imageTokens, or switch use_dynamic_shifting off.",
    });
  }
  const { base_shift, max_shift, base_image_seq_len: base, max_image_seq_len: most } = config;
  const mu = base_shift + ((imageTokens - base) * (max_shift - base_shift)) / (most - base);
  const factor = config.time_shift_type === "exponential" ? Math.exp(mu) : mu;
  return (sigma) => factor / (factor + (1 / sigma - 1));
}

/** Scales what is missing from pure noise, so that the last level becomes `terminal`. */
function stretch(sigmas: readonly number[], terminal: number | undefined): number[] {
  if (!terminal) return [...sigmas];
  const scale = (1 - sigmas[sigmas.length - 1]) / (1 - terminal);
  return scale === 0 ? [...sigmas] : sigmas.map((sigma) => 1 - (1 - sigma) / scale);
}
