import { InputError } from "@quad-lora/base";

/**
 * Jensen-Shannon divergence (Lin 1991) of two histograms over the same bins, in nats:
 * `JS = (KL(p || m) + KL(q || m)) / 2`, `m = (p + q) / 2`. Each histogram is divided by its sum first.
 *
 * @returns 0 (proportional histograms) to ln 2 (no common bin).
 * @throws InputError when the lengths differ, a value is negative or not finite, or a histogram sums to zero.
 */
export function jensenShannonDivergence(p: ArrayLike<number>, q: ArrayLike<number>): number {
  checkSameLength(p, q);
  const totalP = histogramTotal(p, "first histogram");
  const totalQ = histogramTotal(q, "second histogram");
  let sum = 0;
  for (let i = 0; i < p.length; i++) {
    const a = p[i] / totalP;
    const b = q[i] / totalQ;
    const middle = (a + b) / 2;
    if (a > 0) sum += a * Math.log(a / middle);
    if (b > 0) sum += b * Math.log(b / middle);
  }
  return Math.max(sum / 2, 0);
}

/**
 * Signal-to-quantization-noise ratio of a tensor in dB: `10 log10(sum x^2 / sum (x - y)^2)`.
 * Equal tensors give Infinity; a zero signal with any error gives -Infinity.
 *
 * @throws InputError when the lengths differ or are zero.
 */
export function sqnr(reference: ArrayLike<number>, approximation: ArrayLike<number>): number {
  checkSameLength(reference, approximation);
  let signal = 0;
  let noise = 0;
  for (let i = 0; i < reference.length; i++) {
    const value = reference[i];
    const error = value - approximation[i];
    signal += value * value;
    noise += error * error;
  }
  return noise === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(signal / noise);
}

/** Signal to noise in dB of a noise power relative to the signal's. */
export function decibels(relativeNoise: number): number {
  return -10 * Math.log10(relativeNoise);
}

function checkSameLength(a: ArrayLike<number>, b: ArrayLike<number>): void {
  if (a.length !== b.length || a.length === 0)
    throw new InputError({
      what: "the two vectors must have one length, at least 1",
      expected: a.length === 0 ? "at least one value" : `${a.length} values`,
      got: `${b.length} values`,
      fix: "Compare tensors of one shape, or histograms over the same bins.",
    });
}

function histogramTotal(values: ArrayLike<number>, name: string): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (!(value >= 0) || value === Number.POSITIVE_INFINITY)
      throw new InputError({
        what: "a histogram holds a value that is negative or not finite",
        where: `${name}, bin ${i}`,
        expected: "a number of at least 0",
        got: String(value),
      });
    total += value;
  }
  if (total === 0) throw new InputError({ what: "a histogram is empty", where: name, expected: "a positive sum" });
  return total;
}
