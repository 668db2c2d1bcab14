/**
 * What a scheduler's model predicts: the noise, the velocity `alpha * noise - sigma * x0`, `x0` itself, or flow matching's
 * velocity `noise - x0`.
 */
export type PredictionType = "epsilon" | "v_prediction" | "sample" | "flow_prediction";

/** How much of the original and of the noise a sample `alpha * x0 + sigma * noise` has. */
export interface Level {
  readonly alpha: number;
  readonly sigma: number;
}

/**
 * A sampler of one trajectory from noise to a sample. The caller evaluates the model at every entry of `timesteps`:
 *
 * 1. start with unit-variance noise times `initNoiseSigma` (or with {@link Scheduler.addNoise} at index k > 0),
 * 2. for every index: `scaleModelInput`, run the model at `timesteps[index]`, `step`.
 *
 * A step that does not follow the previous one (another start, or a new trajectory at index 0) begins without history.
 * Arrays are flat and of equal length, else a RangeError is thrown; the layout does not matter.
 */
export interface Scheduler {
  /** One entry per model evaluation, so Heun and PNDM have more than the steps asked for. May be fractional. */
  readonly timesteps: readonly number[];
  /** Standard deviation of the start noise. */
  readonly initNoiseSigma: number;
  readonly predictionType: PredictionType;
  /**
   * Evaluations that a step takes: step `n` begins at evaluation `order * n`. 2 for Heun, whose last step takes one only;
   * 1 for all others, as in diffusers: the evaluations that PNDM has more at its start do not count.
   */
  readonly order: number;
  /** Writes the model's input for evaluation `index` into `out`, which may be `sample`. */
  scaleModelInput(sample: Float32Array, index: number, out: Float32Array): void;
  /**
   * Advances the trajectory: writes the next sample into `out`, which may be `sample`.
   * @param noise - gives new unit-variance noise of the sample's length; needed by LCM, Euler ancestral, TCD with `eta` above
   *   0 and flow matching with `stochastic_sampling`, which throw a TypeError without it
   */
  step(
    modelOutput: Float32Array,
    index: number,
    sample: Float32Array,
    out: Float32Array,
    noise?: () => Float32Array,
  ): void;
  /** For image-to-image: `original` with noise as it should look before evaluation `index`. */
  addNoise(original: Float32Array, noise: Float32Array, index: number, out: Float32Array): void;
}

/** Weights of a linear map from (sample, model output) to a prediction. */
export interface PredictionWeights {
  readonly sample: number;
  readonly output: number;
}

/** Weights of a linear map from (x0, noise) to what a model predicts. */
export interface TargetWeights {
  readonly original: number;
  readonly noise: number;
}

/**
 * What a model of this type should predict of a sample `alpha * x0 + sigma * noise`: the target of training,
 * `x0 * weights.original + noise * weights.noise`.
 */
export function targetWeights(type: PredictionType, alpha: number, sigma: number): TargetWeights {
  switch (type) {
    case "epsilon":
      return { original: 0, noise: 1 };
    case "v_prediction":
      return { original: -sigma, noise: alpha };
    case "sample":
      return { original: 1, noise: 0 };
    case "flow_prediction":
      return { original: -1, noise: 1 };
  }
}

/**
 * `x0 = sample * weights.sample + output * weights.output` for a sample `alpha * x0 + sigma * noise`, where
 * `alpha^2 + sigma^2 = 1`, or `alpha + sigma = 1` for flow matching.
 */
export function originalWeights(type: PredictionType, alpha: number, sigma: number): PredictionWeights {
  switch (type) {
    case "epsilon":
      return { sample: 1 / alpha, output: -sigma / alpha };
    case "v_prediction":
      return { sample: alpha, output: -sigma };
    case "sample":
      return { sample: 0, output: 1 };
    case "flow_prediction":
      return { sample: 1, output: -sigma };
  }
}

/** As {@link originalWeights}, for the noise. */
export function noiseWeights(type: PredictionType, alpha: number, sigma: number): PredictionWeights {
  switch (type) {
    case "epsilon":
      return { sample: 0, output: 1 };
    case "v_prediction":
      return { sample: sigma, output: alpha };
    case "sample":
      return { sample: 1 / sigma, output: -alpha / sigma };
    case "flow_prediction":
      return { sample: 1, output: alpha };
  }
}

/** `out = first * firstWeight + second * secondWeight` */
export function combine(
  first: Float32Array,
  firstWeight: number,
  second: Float32Array,
  secondWeight: number,
  out: Float32Array,
): void {
  for (let i = 0; i < out.length; i++) out[i] = first[i] * firstWeight + second[i] * secondWeight;
}

/** One summand of {@link weightedSum}. */
export interface Term {
  readonly values: Float32Array;
  readonly weight: number;
}

/** `out = sum of values * weight`, in float64 until it is stored; `out` may be one of the summands. */
export function weightedSum(terms: readonly Term[], out: Float32Array): void {
  for (let i = 0; i < out.length; i++) {
    let sum = 0;
    for (const { values, weight } of terms) sum += values[i] * weight;
    out[i] = sum;
  }
}

export function scale(values: Float32Array, factor: number, out: Float32Array): void {
  for (let i = 0; i < out.length; i++) out[i] = values[i] * factor;
}

/** The latest arrays of a trajectory in buffers that are allocated once and reused. */
export class History {
  readonly #buffers: Float32Array[] = [];
  readonly #capacity: number;
  #newest = -1;
  #previousIndex = Number.NaN;
  #count = 0;

  /** @param capacity - how many arrays to keep */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  /** Number of arrays held, at most the capacity. */
  get count(): number {
    return this.#count;
  }

  /** Notes the evaluation at hand; forgets everything if it does not follow the previous one. */
  enter(index: number, length: number): void {
    const fits = this.#buffers[0]?.length === length;
    if (!fits) {
      this.#buffers.length = 0;
      while (this.#buffers.length < this.#capacity) this.#buffers.push(new Float32Array(length));
    }
    if (!fits || index !== this.#previousIndex + 1) this.#count = 0;
    this.#previousIndex = index;
  }

  /** Makes the oldest buffer the newest, for the caller to fill. */
  push(): Float32Array {
    this.#newest = (this.#newest + 1) % this.#capacity;
    this.#count = Math.min(this.#count + 1, this.#capacity);
    return this.#buffers[this.#newest];
  }

  /** The array pushed `age` pushes ago; 0 is the newest. */
  at(age: number): Float32Array {
    if (age >= this.#count) throw new RangeError(`history holds ${this.#count} arrays, not ${age + 1}`);
    return this.#buffers[(this.#newest - age + this.#capacity) % this.#capacity];
  }
}
