import { fileURLToPath } from "node:url";
import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { inspectModel } from "../expose/expose.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { fakeQuantize } from "../quantization/encoding.ts";
import { alignToGrid, balance, type Factors, factorScales, productError, rotate } from "./index.ts";

function normals(count: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 1) >>> 0;
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return Float32Array.from({ length: count }, () => {
    return Math.sqrt(-2 * Math.log(uniform() + 1e-12)) * Math.cos(2 * Math.PI * uniform());
  });
}

/** Factors whose ranks differ in size by `spread` from first to last, in opposite order in A and B. */
function factorsOf(inFeatures: number, rank: number, outFeatures: number, seed: number, spread = 1): Factors {
  const size = (k: number) => spread ** (rank > 1 ? k / (rank - 1) - 0.5 : 0);
  const A = normals(inFeatures * rank, seed).map((value, i) => value * size(i % rank));
  const B = normals(rank * outFeatures, seed + 1).map((value, i) => value / size(Math.floor(i / outFeatures)));
  return { A, B, inFeatures, rank, outFeatures };
}

function product({ A, B, inFeatures, rank, outFeatures }: Factors): Float64Array {
  const result = new Float64Array(inFeatures * outFeatures);
  for (let i = 0; i < inFeatures; i++)
    for (let k = 0; k < rank; k++)
      for (let o = 0; o < outFeatures; o++) result[i * outFeatures + o] += A[i * rank + k] * B[k * outFeatures + o];
  return result;
}

function distance(x: Float64Array, y: Float64Array): number {
  const norm = Math.sqrt(y.reduce((sum, value) => sum + value ** 2, 0));
  const difference = Math.sqrt(x.reduce((sum, value, i) => sum + (value - y[i]) ** 2, 0));
  return difference === 0 ? 0 : difference / norm;
}

/** The product's error by multiplying out, with the quantizer that bundles use. */
function directError(changed: Factors, scaleA: number, scaleB: number, original: Factors, bits: 8 | 16 = 8): number {
  const grid = (scale: number) => ({
    bits,
    signed: true,
    symmetric: true,
    scale: Float32Array.of(scale),
    zeroPoint: Int32Array.of(0),
  });
  const A = fakeQuantize(changed.A, [changed.A.length], grid(scaleA));
  const B = fakeQuantize(changed.B, [changed.B.length], grid(scaleB));
  return distance(product({ ...changed, A, B }), product(original));
}

function padded({ A, B, inFeatures, rank, outFeatures }: Factors, wide: number): Factors {
  const wideA = Float32Array.from({ length: inFeatures * wide }, (_, i) =>
    i % wide < rank ? A[Math.floor(i / wide) * rank + (i % wide)] : 0,
  );
  const wideB = new Float32Array(wide * outFeatures);
  wideB.set(B);
  return { A: wideA, B: wideB, inFeatures, rank: wide, outFeatures };
}

const decibels = (error: number) => -20 * Math.log10(error);

describe("full precision", () => {
  const cases = fc.record({
    inFeatures: fc.integer({ min: 1, max: 24 }),
    rank: fc.integer({ min: 1, max: 12 }),
    outFeatures: fc.integer({ min: 1, max: 24 }),
    seed: fc.nat(1000),
    spread: fc.constantFrom(1, 30, 1e4),
    extra: fc.nat(3),
  });

  test("balancing, rotating and aligning keep the product, whatever the shape, with zero ranks too", () => {
    fc.assert(
      fc.property(cases, fc.constantFrom(null, 0.01, 1e-4), fc.constantFrom(null, 0.003), (c, scaleA, scaleB) => {
        const factors = padded(factorsOf(c.inFeatures, c.rank, c.outFeatures, c.seed, c.spread), c.rank + c.extra);
        const exact = product(factors);
        const { A, B } = alignToGrid({ ...factors, scaleA, scaleB, bits: 8 });
        const results = [balance(factors, 8, scaleA, scaleB), rotate(factors), { ...factors, A, B }];
        for (const result of results) expect(distance(product(result), exact)).toBeLessThanOrEqual(1e-5);
      }),
      { seed: 1, numRuns: 150 },
    );
  });

  test("ranks that are copies of others are no problem", () => {
    const factors = factorsOf(9, 4, 7, 3);
    for (let i = 0; i < 9; i++) factors.A[i * 4 + 2] = 2 * factors.A[i * 4];
    factors.B.copyWithin(7, 0, 7);
    expect(distance(product(rotate(factors)), product(factors))).toBeLessThan(1e-6);
  });
});

describe("errors", () => {
  test("the reported errors are those of the multiplied-out products", () => {
    for (const refine of [false, true]) {
      for (const [scaleA, scaleB] of [
        [null, null],
        [0.02, 0.015],
        [null, 0.01],
        [0.01, null],
      ]) {
        const factors = factorsOf(30, 6, 20, 5, 20);
        const result = alignToGrid({ ...factors, scaleA, scaleB, bits: 8, refine });
        expect(
          directError({ ...factors, ...result }, result.scaleA, result.scaleB, factors) / result.error,
        ).toBeCloseTo(1, 4);
        expect(result.error).toBe(Math.min(...result.steps.map(({ error }) => error)));
        expect(result.errorBefore).toBe(result.steps[0].error);
        if (scaleA !== null) expect(result.scaleA).toBe(Math.fround(scaleA));
        if (scaleB !== null) expect(result.scaleB).toBe(Math.fround(scaleB));
      }
    }
  });

  test("refined factors are on the grid", () => {
    const factors = factorsOf(30, 6, 20, 5);
    const { A, B, scaleA, scaleB } = alignToGrid({ ...factors, scaleA: null, scaleB: null, bits: 8, refine: true });
    for (const [values, scale] of [
      [A, scaleA],
      [B, scaleB],
    ] as const)
      for (const value of values) {
        expect(Math.abs(value / scale - Math.round(value / scale))).toBeLessThan(1e-4);
        expect(Math.abs(value / scale)).toBeLessThan(127.01);
      }
  });

  test("ranks of very different sizes: balancing alone regains what one scale per tensor loses", () => {
    const factors = factorsOf(200, 8, 200, 11, 1000);
    const { steps, errorBefore } = alignToGrid({ ...factors, scaleA: null, scaleB: null, bits: 8 });
    const balanced = steps.find(({ step }) => step === "balance")!.error;
    expect(balanced).toBeLessThan(errorBefore / 20);
    // All ranks alike is where no balancing is needed: the same error to within a fraction.
    expect(balanced / productError(factorsOf(200, 8, 200, 11), 8)).toBeLessThan(1.1);
  });

  test("a gauge with large and small ranks mixed up is undone by spreading", () => {
    const factors = factorsOf(100, 8, 100, 21);
    // Rank 0 gets a hundredfold share of rank 1 in A, which B takes back: no scaling of ranks can undo that.
    for (let i = 0; i < 100; i++) factors.A[i * 8] += 100 * factors.A[i * 8 + 1];
    for (let o = 0; o < 100; o++) factors.B[100 + o] -= 100 * factors.B[o];
    const { steps } = alignToGrid({ ...factors, scaleA: null, scaleB: null, bits: 8 });
    const errorOf = (name: string) => steps.find(({ step }) => step === name)!.error;
    expect(errorOf("spread")).toBeLessThan(errorOf("balance") / 10);
  });

  test("padding with zero ranks changes no quantized product, and helps where the factors would clip", () => {
    const factors = factorsOf(60, 4, 50, 31);
    const wide = padded(factors, 16);
    expect(productError(wide, 8)).toBeCloseTo(productError(factors, 8), 10);
    const scales = { scaleA: 0.008, scaleB: 0.008 };
    expect(productError(wide, 8, scales)).toBeCloseTo(productError(factors, 8, scales), 10);
    const narrow = alignToGrid({ ...factors, ...scales, bits: 8 });
    const spread = alignToGrid({ ...wide, ...scales, bits: 8 });
    expect(narrow.clippedA + narrow.clippedB).toBeGreaterThan(0);
    expect(spread.error).toBeLessThan(narrow.error / 2);
  });

  test("16 bits lose about 256 times less", () => {
    const factors = factorsOf(80, 8, 60, 41);
    const error = (bits: 8 | 16) => alignToGrid({ ...factors, scaleA: null, scaleB: null, bits }).error;
    expect(Math.log2(error(8) / error(16))).toBeCloseTo(8, 0);
  });

  test("untrained and broken factors", () => {
    const factors = { ...factorsOf(5, 2, 4, 1), B: new Float32Array(8) };
    expect(alignToGrid({ ...factors, scaleA: null, scaleB: null, bits: 8 })).toMatchObject({
      error: 0,
      errorBefore: 0,
    });
    const broken = { ...factors, A: factors.A.map((value, i) => (i === 3 ? Number.NaN : value)) };
    expect(() => alignToGrid({ ...broken, scaleA: null, scaleB: null, bits: 8 })).toThrow(
      /factor A is not finite.*element 3/,
    );
    expect(() => alignToGrid({ ...factors, scaleA: 0, scaleB: null, bits: 8 })).toThrow(InputError);
    expect(() => alignToGrid({ ...factors, rank: 3, scaleA: null, scaleB: null, bits: 8 })).toThrow(RangeError);
  });
});

describe("shared scales", () => {
  test("fit the largest of several adapters, and headroom leaves space", () => {
    const small = factorsOf(40, 4, 30, 1);
    const large = { ...factorsOf(40, 4, 30, 2), B: factorsOf(40, 4, 30, 2).B.map((value) => value * 9) };
    const shared = factorScales([small, large], 8);
    expect(shared).toEqual(factorScales(large, 8));
    expect(alignToGrid({ ...large, ...shared, bits: 8 }).error).toBeLessThan(0.02);
    expect(alignToGrid({ ...small, ...shared, bits: 8 }).error).toBeLessThan(0.05);
    const wide = factorScales(large, 8, 4);
    expect((wide.scaleA * wide.scaleB) / (shared.scaleA * shared.scaleB)).toBeCloseTo(4, 5);
  });

  test("an untrained adapter has no say", () => {
    const factors = factorsOf(10, 2, 10, 3);
    const untrained = { ...factors, B: new Float32Array(20) };
    expect(factorScales([untrained, factors], 8)).toEqual(factorScales(factors, 8));
  });
});

describe("the pocket model's adapters, every tenth slot", () => {
  const names = ["flat", "sketch", "erase"] as const;
  const slots: Record<string, Factors>[] = [];

  beforeAll(async () => {
    const folder = await openModelFolder(fileURLToPath(new URL("../../../../models/pocket", import.meta.url)));
    const { adapters } = await inspectModel(folder, Object.fromEntries(names.map((name) => [name, name])));
    const byModule = new Map<string, Record<string, Factors>>();
    for (const { name, layers } of adapters) {
      for (const { component, module, rank, down, up } of layers) {
        const [inFeatures, outFeatures] = [down.length / rank, up.length / rank];
        const A = new Float32Array(down.length);
        const B = new Float32Array(up.length);
        for (let k = 0; k < rank; k++) {
          for (let i = 0; i < inFeatures; i++) A[i * rank + k] = down[k * inFeatures + i];
          for (let o = 0; o < outFeatures; o++) B[k * outFeatures + o] = up[o * rank + k];
        }
        const slot = byModule.get(`${component}.${module}`) ?? {};
        byModule.set(`${component}.${module}`, slot);
        slot[name] = { A, B, inFeatures, rank, outFeatures };
      }
    }
    slots.push(...[...byModule.values()].filter((slot, i) => i % 10 === 0 && names.every((name) => slot[name])));
    expect(slots.length).toBeGreaterThan(8);
  });

  const average = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

  test.each(names)("%s on its own scales: over 1.5 dB better, over 2.8 dB with refinement", (name) => {
    const gains = [false, true].map((refine) =>
      average(
        slots.map((slot) => {
          const { error, errorBefore } = alignToGrid({ ...slot[name], scaleA: null, scaleB: null, bits: 8, refine });
          return decibels(error) - decibels(errorBefore);
        }),
      ),
    );
    expect(gains[0]).toBeGreaterThan(1.5);
    expect(gains[1]).toBeGreaterThan(2.8);
  });

  test("scales of all three fit each of them as well as its own within 3 dB; raw peaks of another do not", () => {
    const losses: number[] = [];
    const naive: number[] = [];
    for (const slot of slots) {
      const shared = factorScales(
        names.map((name) => slot[name]),
        8,
      );
      for (const name of names) {
        losses.push(
          decibels(productError(slot[name], 8)) - decibels(alignToGrid({ ...slot[name], ...shared, bits: 8 }).error),
        );
      }
      const peak = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const flat = { scaleA: peak(slot.flat.A) / 127, scaleB: peak(slot.flat.B) / 127 };
      naive.push(decibels(productError(slot.sketch, 8)) - decibels(productError(slot.sketch, 8, flat)));
    }
    expect(average(losses)).toBeLessThan(3);
    expect(average(naive)).toBeGreaterThan(10);
  });
});
