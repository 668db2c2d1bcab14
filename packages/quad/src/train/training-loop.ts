import { InputError } from "@quad-lora/base";
import { SeededRandom, type TensorData } from "@quad-lora/runtime";
import { writeFileAtomically } from "../files/atomic.ts";
import { readCheckpoint, type TrainingCurve, type TrainingState, writeCheckpoint } from "./checkpoint.ts";
import type { TrainingSession } from "./training-graph.ts";

/**
 * Gives the tensors of one step, by the graph's input names. It may depend on nothing but its arguments and on what was
 * fixed before training: a resumed run asks for the same steps with the same random numbers.
 * @param step - 0 first
 */
export type BatchSource = (
  step: number,
  random: SeededRandom,
) => Readonly<Record<string, TensorData>> | Promise<Readonly<Record<string, TensorData>>>;

/** How far a training run is. */
export interface TrainingProgress {
  /** Steps done, those before a resume included. */
  step: number;
  steps: number;
  loss: number;
  gradientNorm: number;
  /** What the loss consists of, before weights, as far as the graph says it. */
  terms: Readonly<Record<string, number>>;
  secondsLeft: number;
}

export interface TrainingOptions {
  steps: number;
  /** Highest learning rate. */
  learningRate: number;
  /** Steps over which the rate grows linearly from zero. */
  warmup?: number;
  /** After the warm-up: half a cosine down to zero (Loshchilov and Hutter 2017, arXiv 1608.03983), or no change. */
  schedule?: "cosine" | "constant";
  /** Decay of the parameters' exponential moving average, smaller in the first steps; 0 keeps no average. */
  averageDecay?: number;
  seed: number;
  checkpoint?: {
    path: string;
    /** Steps between two checkpoints. */
    every: number;
    /** Tells runs apart: a checkpoint of another identity is refused. */
    identity: string;
  };
  evaluation?: {
    /** Steps between two evaluations; the last step has one too. */
    every: number;
    /** Also measure the initial parameters: the result is then never worse than they are. */
    atStart?: boolean;
    /** Measures parameters (the average where there is one): lower is better. */
    evaluate: (parameters: Float32Array) => Promise<number>;
  };
  /** Where the loss curve goes at the end, and at every checkpoint: JSON. */
  curvePath?: string;
  /** On abort a checkpoint is written; then the signal's reason is thrown. */
  signal?: AbortSignal;
  onStep?: (progress: TrainingProgress) => void;
}

export interface TrainingResult {
  /** The best evaluated parameters; without evaluations the average; without one those of the last step. */
  parameters: Float32Array;
  /** Parameters after the last step. */
  last: Float32Array;
  average: Float32Array | null;
  best: TrainingState["best"];
  curve: TrainingCurve;
  /** Step that training went on from; 0 for a fresh run. */
  resumedFrom: number;
}

/**
 * Trains. The same session, source and options give the same bytes, also when the run was stopped in between and went on
 * from its checkpoint.
 * @param initial - `[size]`; copied
 * @throws InputError where the loss is no longer finite, or the checkpoint belongs to another run
 */
export async function trainingLoop(
  session: TrainingSession,
  initial: Float32Array,
  batch: BatchSource,
  options: TrainingOptions,
): Promise<TrainingResult> {
  const { steps, checkpoint, evaluation, signal } = options;
  const averageDecay = options.averageDecay ?? 0;
  const known = checkpoint ? await readCheckpoint(checkpoint.path, checkpoint.identity, session.size) : null;
  const state = known ?? freshState(initial, options.seed, averageDecay > 0);
  const resumedFrom = state.step;
  const random = new SeededRandom(state.random);
  const save = async () => {
    state.random = random.state;
    if (checkpoint) await writeCheckpoint(checkpoint.path, state, checkpoint.identity);
    if (options.curvePath) await writeCurve(options.curvePath, state.curve);
  };

  if (evaluation?.atStart && state.step === 0) await measure(state, evaluation);
  let savedAt = state.step;
  const started = performance.now();
  while (state.step < steps) {
    if (signal?.aborted) {
      if (state.step > savedAt) await save();
      throw signal.reason;
    }
    const tensors = await batch(state.step, random);
    const {
      loss,
      gradientNorm,
      terms,
      state: next,
    } = await session.step(state, state.step + 1, learningRateAt(state.step, options), tensors);
    if (!Number.isFinite(loss) || !Number.isFinite(gradientNorm)) {
      throw new InputError({
        what: "training diverged: the loss is not finite any more",
        where: `step ${state.step + 1}`,
        got: `loss ${loss}, gradient norm ${gradientNorm}`,
        fix: "Lower the learning rate.",
      });
    }
    Object.assign(state, next);
    state.step++;
    state.curve.losses.push(loss);
    state.curve.gradientNorms.push(gradientNorm);
    if (state.average) moveAverage(state.average, state.parameters, averageDecayAt(state.step, averageDecay));
    if (evaluation && (state.step % evaluation.every === 0 || state.step === steps)) {
      await measure(state, evaluation);
    }
    if (checkpoint && (state.step % checkpoint.every === 0 || state.step === steps)) {
      await save();
      savedAt = state.step;
    }
    const perStep = (performance.now() - started) / (state.step - resumedFrom);
    const secondsLeft = (perStep * (steps - state.step)) / 1000;
    options.onStep?.({ step: state.step, steps, loss, gradientNorm, terms, secondsLeft });
  }
  if (options.curvePath) await writeCurve(options.curvePath, state.curve);
  const { parameters: last, average, best, curve } = state;
  return { parameters: best?.parameters ?? average ?? last, last, average, best, curve, resumedFrom };
}

async function measure(state: TrainingState, { evaluate }: NonNullable<TrainingOptions["evaluation"]>): Promise<void> {
  const parameters = state.average ?? state.parameters;
  const value = await evaluate(parameters);
  state.curve.evaluations.push({ step: state.step, value });
  if (!state.best || value < state.best.value) state.best = { step: state.step, value, parameters: parameters.slice() };
}

function freshState(initial: Float32Array, seed: number, hasAverage: boolean): TrainingState {
  return {
    step: 0,
    parameters: initial.slice(),
    mean: new Float32Array(initial.length),
    square: new Float32Array(initial.length),
    average: hasAverage ? initial.slice() : null,
    best: null,
    random: new SeededRandom(seed).state,
    curve: { losses: [], gradientNorms: [], evaluations: [] },
  };
}

/** @param step - 0 first */
export function learningRateAt(
  step: number,
  {
    steps,
    learningRate,
    warmup = 0,
    schedule = "cosine",
  }: Pick<TrainingOptions, "steps" | "learningRate" | "warmup" | "schedule">,
): number {
  if (step < warmup) return (learningRate * (step + 1)) / warmup;
  if (schedule === "constant") return learningRate;
  const share = (step - warmup) / Math.max(1, steps - warmup);
  return (learningRate * (1 + Math.cos(Math.PI * share))) / 2;
}

/** The start counts for less and less: after ten steps the average spans about two of them, later as many as `decay` says. */
function averageDecayAt(step: number, decay: number): number {
  return Math.min(decay, (1 + step) / (10 + step));
}

function moveAverage(average: Float32Array, parameters: Float32Array, decay: number): void {
  const share = 1 - decay;
  for (let i = 0; i < average.length; i++) average[i] += share * (parameters[i] - average[i]);
}

async function writeCurve(path: string, { losses, gradientNorms, evaluations }: TrainingCurve): Promise<void> {
  const content = { format: "quad-training-curve", version: 1, losses, gradientNorms, evaluations };
  await writeFileAtomically(path, `${JSON.stringify(content)}\n`);
}
