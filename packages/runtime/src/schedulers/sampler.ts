import { combine, type Level, type PredictionType, type Scheduler, scale } from "./scheduler.ts";

/** What {@link Scheduler.step} was called with, checked. */
export interface Step {
  readonly modelOutput: Float32Array;
  readonly index: number;
  readonly sample: Float32Array;
  /** May be `sample`. */
  readonly out: Float32Array;
  /** @throws TypeError when the call brought no noise */
  noise(): Float32Array;
}

function checkIndex(index: number, count: number): void {
  if (!Number.isInteger(index) || index < 0 || index >= count) {
    throw new RangeError(`evaluation index ${index} is outside 0..${count - 1}`);
  }
}

function checkLengths(sample: Float32Array, ...others: Float32Array[]): void {
  for (const other of others) {
    if (other.length !== sample.length) {
      throw new RangeError(`arrays of different lengths: ${sample.length} and ${other.length}`);
    }
  }
}

/** What all schedulers do alike. A class that extends it says how noisy its states are, and how to take a step. */
export abstract class Sampler implements Scheduler {
  readonly timesteps: readonly number[];
  readonly predictionType: PredictionType;
  readonly initNoiseSigma: number;
  readonly order: number = 1;

  constructor(predictionType: PredictionType, timesteps: readonly number[], initNoiseSigma = 1) {
    this.predictionType = predictionType;
    this.timesteps = timesteps;
    this.initNoiseSigma = initNoiseSigma;
  }

  /** The state before an evaluation is `alpha * x0 + sigma * noise`. */
  protected abstract level(index: number): Level;

  /** Writes the sample after the step into `out`. */
  protected abstract advance(step: Step): void;

  /** What turns the state before an evaluation into the model's input. */
  protected inputScale(_index: number): number {
    return 1;
  }

  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, out);
    scale(sample, this.inputScale(index), out);
  }

  step(
    modelOutput: Float32Array,
    index: number,
    sample: Float32Array,
    out: Float32Array,
    noise?: () => Float32Array,
  ): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(sample, modelOutput, out);
    const draw = () => {
      if (!noise) throw new TypeError("this scheduler is stochastic: step() needs its noise argument");
      const drawn = noise();
      checkLengths(sample, drawn);
      return drawn;
    };
    this.advance({ modelOutput, index, sample, out, noise: draw });
  }

  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void {
    checkIndex(index, this.timesteps.length);
    checkLengths(original, noise, out);
    const { alpha, sigma } = this.level(index);
    combine(original, alpha, noise, sigma, out);
  }
}
