/** What {@link SeededRandom} needs to go on where it stopped; plain JSON. */
export interface RandomState {
  /** Four unsigned 32-bit integers, not all zero. */
  readonly words: readonly [number, number, number, number];
  /** The second normal of a pair whose first has been given out. */
  readonly spareNormal: number | null;
}

/**
 * Random numbers that are the same on every platform: xoshiro128** 1.1 (Blackman and Vigna, "Scrambled Linear
 * Pseudorandom Number Generators", 2021), seeded through SplitMix64 as its authors advise. Not for cryptography.
 */
export class SeededRandom {
  readonly #words: Uint32Array;
  #spareNormal: number | null;

  /**
   * @param seedOrState - a safe integer, negative ones included, or a state taken from another instance
   * @throws RangeError on anything else
   */
  constructor(seedOrState: number | RandomState) {
    if (typeof seedOrState === "number") {
      if (!Number.isSafeInteger(seedOrState)) throw new RangeError(`seed ${seedOrState} is not a safe integer`);
      const [first, second] = splitMix64(BigInt(seedOrState), 2) as [bigint, bigint];
      this.#words = Uint32Array.of(...[first, first >> 32n, second, second >> 32n].map(lowWord));
      this.#spareNormal = null;
      return;
    }
    const { words, spareNormal } = seedOrState;
    const isWord = (word: number) => Number.isInteger(word) && word >= 0 && word < 2 ** 32;
    if (words.length !== 4 || !words.every(isWord) || words.every((word) => word === 0)) {
      throw new RangeError("random state needs four unsigned 32-bit integers, not all zero");
    }
    this.#words = Uint32Array.from(words);
    this.#spareNormal = spareNormal;
  }

  /** A copy of the state; `new SeededRandom(state)` goes on with the numbers that come next here. */
  get state(): RandomState {
    const [a, b, c, d] = this.#words as unknown as [number, number, number, number];
    return { words: [a, b, c, d], spareNormal: this.#spareNormal };
  }

  /** An unsigned 32-bit integer: the generator's own output. */
  word(): number {
    const s = this.#words;
    const scrambled = Math.imul(rotateLeft(Math.imul(s[1], 5), 7), 9) >>> 0;
    const shifted = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = rotateLeft(s[3], 11);
    return scrambled;
  }

  /** Uniform in [0, 1), a multiple of 2^-53. */
  uniform(): number {
    return this.#bits53() / 2 ** 53;
  }

  /**
   * Uniform in 0..n-1, without bias.
   * @param n - from 1 to 2^53 - 1, else a RangeError is thrown
   */
  integer(n: number): number {
    if (!Number.isSafeInteger(n) || n < 1) throw new RangeError(`integer(n) needs n in 1..2^53 - 1, got ${n}`);
    const limit = 2 ** 53 - (2 ** 53 % n);
    let drawn = this.#bits53();
    while (drawn >= limit) drawn = this.#bits53();
    return drawn % n;
  }

  /** Standard normal (Box and Muller, 1958), computed in float64; at most 8.6 in size. */
  normal(): number {
    if (this.#spareNormal !== null) {
      const spare = this.#spareNormal;
      this.#spareNormal = null;
      return spare;
    }
    const radius = Math.sqrt(-2 * naturalLog(1 - this.uniform()));
    const { cosine, sine } = cosineAndSine(this.uniform());
    this.#spareNormal = radius * sine;
    return radius * cosine;
  }

  #bits53(): number {
    const high = this.word() >>> 5;
    return high * 2 ** 26 + (this.word() >>> 6);
  }
}

/**
 * Unit-variance normal noise, the same for a seed on every platform. A shorter array is a prefix of a longer one.
 * @param seed - a safe integer
 */
export function seededNoise(seed: number, length: number): Float32Array {
  const random = new SeededRandom(seed);
  const noise = new Float32Array(length);
  for (let i = 0; i < length; i++) noise[i] = random.normal();
  return noise;
}

/** SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014). */
export function splitMix64(seed: bigint, count: number): bigint[] {
  const wrap = (value: bigint) => BigInt.asUintN(64, value);
  let state = wrap(seed);
  return Array.from({ length: count }, () => {
    state = wrap(state + 0x9e3779b97f4a7c15n);
    let mixed = wrap((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n);
    mixed = wrap((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn);
    return mixed ^ (mixed >> 31n);
  });
}

function lowWord(value: bigint): number {
  return Number(BigInt.asUintN(32, value));
}

function rotateLeft(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}

// JavaScript leaves the last bits of Math.log, Math.sin and Math.cos to the engine. The functions below use only
// operations that IEEE 754 fixes, so that every engine gives the same noise.

/** Logarithm of a multiple of 2^-53 in (0, 1]; the series of the inverse hyperbolic tangent. */
function naturalLog(value: number): number {
  let mantissa = value;
  let exponent = 0;
  while (mantissa < Math.SQRT1_2) {
    mantissa *= 2;
    exponent--;
  }
  const ratio = (mantissa - 1) / (mantissa + 1);
  const square = ratio * ratio;
  // |ratio| <= 0.172, so that the term after 1/23 is below 2^-53.
  let sum = 0;
  for (let denominator = 23; denominator >= 1; denominator -= 2) sum = sum * square + 1 / denominator;
  return exponent * Math.LN2 + 2 * ratio * sum;
}

/** Cosine and sine of `turns` of the full circle, for turns in [0, 1), by Taylor series in an eighth of it. */
function cosineAndSine(turns: number): { cosine: number; sine: number } {
  const quarter = Math.floor(turns * 4 + 0.5);
  const angle = (turns - quarter / 4) * 2 * Math.PI;
  const square = angle * angle;
  // |angle| <= pi / 4, so that the terms after the 18th power are below 2^-53.
  let cosine = 1;
  let sine = 1;
  for (let n = 18; n >= 2; n -= 2) {
    cosine = 1 - (square / (n * (n - 1))) * cosine;
    sine = 1 - (square / (n * (n + 1))) * sine;
  }
  sine *= angle;
  switch (quarter % 4) {
    case 1:
      return { cosine: -sine, sine: cosine };
    case 2:
      return { cosine: -cosine, sine: -sine };
    case 3:
      return { cosine: sine, sine: -cosine };
    default:
      return { cosine, sine };
  }
}
