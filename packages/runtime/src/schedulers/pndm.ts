import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { AlphaSampler } from "./alpha-sampler.ts";
import {
  betaOptions,
  defineScheduler,
  lastAlphaOptions,
  type OptionsOf,
  type ScheduleRequest,
  spacingOptions,
} from "./definition.ts";
import { alphaCumprodAt, betaLevels, levelOf } from "./noise-schedule.ts";
import type { Step } from "./sampler.ts";
import { combine, History, type Level, scale, weightedSum } from "./scheduler.ts";
import { roundHalfToEven, spacedTimesteps } from "./timesteps.ts";

const options = {
  ...betaOptions,
  ...spacingOptions("leading"),
  ...lastAlphaOptions(false),
  prediction_type: z._default(z.enum(["epsilon", "v_prediction"]), "epsilon"),
  /** Start with the linear multistep method instead of Runge-Kutta steps. */
  skip_prk_steps: z._default(z.boolean(), false),
};

type Config = OptionsOf<typeof options>;

export const pndm = defineScheduler({
  classes: ["PNDMScheduler"],
  options,
  levels: betaLevels,
  create: (config, request) => new PndmScheduler(config, request),
});

/** Adams-Bashforth weights by number of known outputs, newest first. */
const multistepWeights = [
  [1],
  [3 / 2, -1 / 2],
  [23 / 12, -16 / 12, 5 / 12],
  [55 / 24, -59 / 24, 37 / 24, -9 / 24],
] as const;

/** Runge-Kutta weights of the four evaluations of a step. */
const rungeKuttaWeights = [1 / 6, 1 / 3, 1 / 3, 1 / 6] as const;
const rungeKuttaEvaluations = 12;

/**
 * Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022). With `skip_prk_steps` the linear
 * multistep method starts with an Euler step whose second evaluation corrects it (algorithm 1 without Runge-Kutta);
 * without it, three Runge-Kutta steps of four evaluations each come first.
 * A trajectory that starts among the evaluations of a step that never began passes them unchanged.
 */
class PndmScheduler extends AlphaSampler<Config> {
  readonly #stride: number;
  readonly #outputs = new History(multistepWeights.length);
  #start = new Float32Array(0);
  #combined = new Float32Array(0);
  #rungeKuttaSum = new Float32Array(0);

  constructor(config: Config, { steps, file }: ScheduleRequest) {
    const stride = Math.floor(config.num_train_timesteps / steps);
    const descending = spacedTimesteps(config, steps).map(roundHalfToEven);
    const timesteps = config.skip_prk_steps
      ? multistepTimesteps(descending)
      : rungeKuttaFirst(descending, stride, file);
    super(config, timesteps, file);
    this.#stride = stride;
  }

  protected override level(index: number): Level {
    const stage = this.#inRungeKutta(index) ? index % 4 : 0;
    const timestep = this.timesteps[stage === 0 ? index : index - stage + 4];
    return levelOf(this.alphasCumprod[timestep]);
  }

  protected advance(step: Step): void {
    const { index, sample, out } = step;
    this.#outputs.enter(index, sample.length);
    if (this.#start.length !== sample.length) {
      this.#start = new Float32Array(sample.length);
      this.#combined = new Float32Array(sample.length);
      this.#rungeKuttaSum = new Float32Array(this.config.skip_prk_steps ? 0 : sample.length);
    }
    if (this.#continues(index) && this.#outputs.count === 0) out.set(sample);
    else if (this.#inRungeKutta(index)) this.#rungeKuttaStep(step);
    else this.#multistep(step);
  }

  #inRungeKutta(index: number): boolean {
    return !this.config.skip_prk_steps && index < rungeKuttaEvaluations;
  }

  /** Whether an evaluation belongs to a step that began at an earlier one. */
  #continues(index: number): boolean {
    return this.#inRungeKutta(index) ? index % 4 !== 0 : this.config.skip_prk_steps && index === 1;
  }

  #multistep({ modelOutput, index, sample, out }: Step): void {
    const timestep = this.timesteps[index];
    if (this.#continues(index)) {
      combine(modelOutput, 0.5, this.#outputs.at(0), 0.5, this.#combined);
      this.#transfer(this.#start, timestep + this.#stride, timestep, this.#combined, out);
      return;
    }
    this.#outputs.push().set(modelOutput);
    const weights = multistepWeights[this.#outputs.count - 1];
    weightedSum(
      weights.map((weight, age) => ({ values: this.#outputs.at(age), weight })),
      this.#combined,
    );
    this.#start.set(sample);
    this.#transfer(this.#start, timestep, timestep - this.#stride, this.#combined, out);
  }

  #rungeKuttaStep({ modelOutput, index, sample, out }: Step): void {
    const stage = index % 4;
    const from = this.timesteps[index - stage];
    const timestep = this.timesteps[index];
    const weight = rungeKuttaWeights[stage];
    if (stage === 0) {
      this.#outputs.push().set(modelOutput);
      this.#start.set(sample);
      scale(modelOutput, weight, this.#rungeKuttaSum);
    } else {
      combine(this.#rungeKuttaSum, 1, modelOutput, weight, this.#rungeKuttaSum);
    }
    const to = stage % 2 === 0 ? timestep - Math.floor(this.#stride / 2) : timestep;
    this.#transfer(this.#start, from, to, stage === 3 ? this.#rungeKuttaSum : modelOutput, out);
  }

  /** Equation 9 of the paper: moves a sample between timesteps along a given output. */
  #transfer(sample: Float32Array, from: number, to: number, output: Float32Array, out: Float32Array): void {
    const alpha = alphaCumprodAt(this.alphasCumprod, this.config, from);
    const next = alphaCumprodAt(this.alphasCumprod, this.config, to);
    const noiseWeight = -(next - alpha) / (alpha * Math.sqrt(1 - next) + Math.sqrt(alpha * (1 - alpha) * next));
    const sampleWeight = Math.sqrt(next / alpha);
    if (this.predictionType === "epsilon") {
      combine(sample, sampleWeight, output, noiseWeight, out);
    } else {
      // epsilon = alpha v + sigma x
      const fromVelocity = sampleWeight + noiseWeight * Math.sqrt(1 - alpha);
      combine(sample, fromVelocity, output, noiseWeight * Math.sqrt(alpha), out);
    }
  }
}

/** The second timestep is evaluated twice: once to correct the first step, once to take the second. */
function multistepTimesteps(descending: readonly number[]): number[] {
  return descending.flatMap((timestep, step) => (step === 1 ? [timestep, timestep] : [timestep]));
}

/** Steps d, c, b, a, ... become d, then c + half and c for the step from d to c, and so on; the rest is as given. */
function rungeKuttaFirst(descending: readonly number[], stride: number, file: string | undefined): number[] {
  if (descending.length < 4) {
    throw new InputError({
      what: "too few steps for Runge-Kutta steps",
      file,
      where: "skip_prk_steps",
      expected: "at least 4 steps",
      got: String(descending.length),
      fix: "Use more steps or set skip_prk_steps to true.",
    });
  }
  const half = Math.floor(stride / 2);
  const steps = [0, 1, 2].flatMap((step) => {
    const end = descending[step + 1];
    return [descending[step], end + half, end + half, end];
  });
  return [...steps, ...descending.slice(3)];
}
