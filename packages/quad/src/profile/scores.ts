import { jensenShannonDivergence } from "../metrics/index.ts";
import { floatValues } from "../model/denoiser-calls.ts";
import type { ModelCall } from "../records/trajectory.ts";

/** How far a quantized denoiser is from the full-precision one on recorded calls. */
export interface Scores {
  /** Quantization sensitivity score, nats: 0 = the same, ln 2 = nothing in common. */
  qss: number;
  /** Signal to quantization noise of all outputs together, dB. */
  sqnr: number;
}

/**
 * `QSS = E_x[ JS(f(x; w) || f(x; w~)) ]` over prompts, images and time steps (the paper's equation). Outputs are fields, not
 * distributions, and the paper does not say how it makes them such; here every channel of every row is standardised by the
 * full-precision channel's mean and deviation and turned into a distribution over its pixels by softmax. The score is
 * then about where the network puts its mass, independent of the output's scale.
 */
export class ScoreKeeper {
  #divergence = 0;
  #fields = 0;
  #signal = 0;
  #noise = 0;

  add(call: Pick<ModelCall, "output">, quantized: Float32Array): void {
    const reference = floatValues(call.output);
    const approximations = fieldsOf(quantized, call.output.dims);
    for (const exact of fieldsOf(reference, call.output.dims)) {
      const approximate = approximations.next().value!;
      const deviation = deviationOf(exact);
      const distribution = (field: Float32Array) => softmax(field, deviation);
      this.#divergence += jensenShannonDivergence(distribution(exact), distribution(approximate));
      this.#fields++;
    }
    for (let index = 0; index < reference.length; index++) {
      const error = reference[index] - quantized[index];
      this.#signal += reference[index] * reference[index];
      this.#noise += error * error;
    }
  }

  scores(): Scores {
    return {
      qss: this.#fields > 0 ? this.#divergence / this.#fields : 0,
      sqnr: this.#noise > 0 ? 10 * Math.log10(this.#signal / this.#noise) : Number.POSITIVE_INFINITY,
    };
  }
}

/** Every channel of every row: of pictures `[rows, channels, height, width]`, of sequences `[rows, patches, channels]`. */
function* fieldsOf(values: Float32Array, dims: readonly number[]): Generator<Float32Array, undefined> {
  const isSequence = dims.length === 3;
  const [rows, first, second] = dims;
  const channels = isSequence ? second : first;
  const size = values.length / (rows * channels);
  for (let row = 0; row < rows; row++) {
    const start = row * channels * size;
    for (let channel = 0; channel < channels; channel++) {
      yield isSequence
        ? Float32Array.from({ length: size }, (_, patch) => values[start + patch * channels + channel])
        : values.subarray(start + channel * size, start + (channel + 1) * size);
    }
  }
}

function deviationOf(field: Float32Array): number {
  let sum = 0;
  for (const value of field) sum += value;
  const mean = sum / field.length;
  let squares = 0;
  for (const value of field) squares += (value - mean) ** 2;
  return Math.sqrt(squares / field.length) || 1;
}

/** Of the field over the deviation; the mean cancels out. */
function softmax(field: Float32Array, deviation: number): Float64Array {
  // A collapsed model's values lie far out: the largest exponent is brought to 0.
  const largest = field.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const weights = Float64Array.from(field, (value) => Math.exp((value - largest) / deviation));
  let total = 0;
  for (const weight of weights) total += weight;
  return weights.map((weight) => weight / total);
}
