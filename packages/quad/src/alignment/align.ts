/**
 * Fits a LoRA's factors to quantization grids without training. `(A G)(G^-1 B) = A B` for every invertible G: G is chosen
 * so that both factors lose least when they are quantized, and full precision stays what it was.
 */
import { InputError } from "@quad-lora/base";
import type { BitWidth } from "../quantization/encoding.ts";
import { balanceRows, shiftScale } from "./balance.ts";
import {
  clippedOf,
  estimateError,
  type FactorGrid,
  largestCode,
  peakScale,
  quantizeRows,
  relativeDistance,
} from "./product-error.ts";
import { refineRows } from "./refine.ts";
import { canonicalRows, lowerPeaks, spreadRows } from "./rotate.ts";
import { type Factors, largest, peakOf, type RankRows, toFactors, toRows } from "./rows.ts";

/** Factors to align, and the grid they must fit. */
export interface AlignmentInput extends Factors {
  /** Scale of A's symmetric per-tensor grid; null where these factors may choose it. */
  readonly scaleA: number | null;
  /** Scale of B's grid; null where these factors may choose it. */
  readonly scaleB: number | null;
  readonly bits: BitWidth;
  /**
   * Also moves the factors to grid points whose product is nearer to A B than rounding gives. The result's A and B are then
   * these points: the product in full precision is no longer A B.
   */
  readonly refine?: boolean;
}

/**
 * What was tried: the factors as given; their ranks scaled; the singular value gauge spread over all ranks; the same
 * rotated to lower peaks; the best of these moved to better grid points.
 */
export type AlignmentStep = "none" | "balance" | "spread" | "lower peaks" | "refine";

export interface Alignment {
  /** `[inFeatures, rank]` */
  readonly A: Float32Array;
  /** `[rank, outFeatures]` */
  readonly B: Float32Array;
  /** Those given, or chosen: float32 values. */
  readonly scaleA: number;
  readonly scaleB: number;
  /** `||quantized A quantized B - A B||_F / ||A B||_F` of the result. */
  readonly error: number;
  /** The same of the factors as given, on the given scales or those of their own peaks. */
  readonly errorBefore: number;
  /** Share of A's values that the grid clips, 0 to 1; with `refine`, of the values that were refined. */
  readonly clippedA: number;
  readonly clippedB: number;
  /** Error after each step; the result is the best of them. */
  readonly steps: readonly { readonly step: AlignmentStep; readonly error: number }[];
}

interface Candidate {
  rows: RankRows;
  grid: FactorGrid;
}

type Scales = Pick<AlignmentInput, "scaleA" | "scaleB"> & { high: number };

/**
 * Tries every step and returns what loses least by the error that was measured. Ranks that are zero are used too: padding
 * factors to the slot's rank before makes them fit where they would clip, as their size spreads over more ranks. Full precision keeps the product to float32 rounding unless `refine` is set.
 * @throws InputError if a value is not finite or a scale not positive
 */
export function alignToGrid(input: AlignmentInput): Alignment {
  const { inFeatures, outFeatures, bits } = input;
  const scales: Scales = {
    scaleA: checkScale(input.scaleA),
    scaleB: checkScale(input.scaleB),
    high: largestCode(bits),
  };
  checkFinite(input.A, "A");
  checkFinite(input.B, "B");
  const exact = toRows(input);
  const steps: { step: AlignmentStep; error: number }[] = [];
  let best: Candidate | undefined;
  let least = Number.POSITIVE_INFINITY;
  const attempt = (step: AlignmentStep, candidate: Candidate): void => {
    // What counts is the product after the factors were rounded to float32, as they will be stored.
    const rows = toRows(toFactors(candidate.rows, inFeatures, outFeatures));
    const error = relativeDistance(quantizeRows(rows, candidate.grid), exact);
    steps.push({ step, error });
    if (error >= least) return;
    least = error;
    best = { rows, grid: candidate.grid };
  };
  attempt("none", { rows: exact, grid: ownGrid(exact, scales) });
  const errorBefore = least;
  if (errorBefore > 0) {
    attempt("balance", balanced(exact, scales));
    const { spread, lowered } = gaugesOf(input, exact);
    attempt("spread", fitted(spread, scales));
    attempt("lower peaks", fitted(lowered, scales));
  }
  if (!best) throw new RangeError("the error of these factors is not a number");
  // Refined factors lie on the grid: what the grid clips is seen before.
  const unrefined = best;
  if (input.refine && errorBefore > 0) attempt("refine", { ...best, rows: refineRows(best.rows, exact, best.grid) });
  const { rows, grid } = best;
  return {
    ...pick(toFactors(rows, inFeatures, outFeatures)),
    scaleA: grid.scaleA,
    scaleB: grid.scaleB,
    error: least,
    errorBefore,
    clippedA: clippedOf(unrefined.rows.a, grid.scaleA, grid.high),
    clippedB: clippedOf(unrefined.rows.b, grid.scaleB, grid.high),
    steps,
  };
}

interface Gauges {
  readonly spread: RankRows;
  readonly lowered: RankRows;
}

/**
 * Gauges by factor A: they do not depend on the grid, and an adapter is tried on several. Factors must not change in place. Single
 * precision, which is what they come in.
 */
const knownGauges = new WeakMap<Float32Array, { B: Float32Array; spread: Factors; lowered: Factors }>();

function gaugesOf({ A, B, inFeatures, outFeatures }: Factors, exact: RankRows): Gauges {
  let known = knownGauges.get(A);
  if (known?.B !== B) {
    const spread = spreadRows(canonicalRows(exact));
    const store = (rows: RankRows) => toFactors(rows, inFeatures, outFeatures);
    known = { B, spread: store(spread), lowered: store(lowerPeaks(spread)) };
    knownGauges.set(A, known);
  }
  return { spread: toRows(known.spread), lowered: toRows(known.lowered) };
}

const pick = ({ A, B }: Factors) => ({ A, B });

/** The given scales, or those of the factors' own peaks. */
function ownGrid({ a, b }: RankRows, { scaleA, scaleB, high }: Scales): FactorGrid {
  return { scaleA: scaleA ?? peakScale(a, high), scaleB: scaleB ?? peakScale(b, high), high };
}

function balanced(rows: RankRows, scales: Scales): Candidate {
  const { scaleA, scaleB, high } = scales;
  if (scaleA !== null && scaleB !== null) {
    const grid = { scaleA, scaleB, high };
    return { rows: balanceRows(rows, grid), grid };
  }
  return withFreeScale(balanceRows(rows, { high }), scales);
}

/** Shares of the peaks' scales that are tried: clipping a few values can pay for a finer grid. */
const clippingShares = [1, 0.94, 0.88, 0.82, 0.76, 0.7];

/** Gives rows of one gauge the scales that they may choose. */
function withFreeScale(rows: RankRows, { scaleA, scaleB, high }: Scales): Candidate {
  // One overall factor is free, so a side whose scale is given is brought to its peak there.
  const moved =
    scaleA !== null ? moveTo(scaleA, rows.a) : scaleB !== null ? 1 / moveTo(scaleB, rows.b) : evenScale(rows);
  const shifted = shiftScale(rows, moved);
  const own = ownGrid(shifted, { scaleA, scaleB, high });
  let best: Candidate = { rows: shifted, grid: own };
  let least = Number.POSITIVE_INFINITY;
  for (const share of clippingShares) {
    const grid = {
      scaleA: scaleA ?? Math.fround(own.scaleA * share),
      scaleB: scaleB ?? Math.fround(own.scaleB * share),
      high,
    };
    const error = estimateError(shifted, grid);
    if (error >= least) continue;
    least = error;
    best = { rows: shifted, grid };
  }
  return best;

  function moveTo(scale: number, side: readonly Float64Array[]): number {
    const peak = largest(side.map(peakOf));
    return peak === 0 ? 1 : (scale * high) / peak;
  }
}

/** The overall factor that gives both sides the same peak: neither may leave float16's range. */
function evenScale({ a, b }: RankRows): number {
  const [peakA, peakB] = [largest(a.map(peakOf)), largest(b.map(peakOf))];
  return peakA === 0 || peakB === 0 ? 1 : Math.sqrt(peakB / peakA);
}

/** Shifts of the overall factor that are tried: every third, then the neighbours of the best. */
const shifts = Array.from({ length: 25 }, (_, i) => 1.12 ** (i - 12));
const coarseShifts = 3;

/** Brings rows whose ranks are alike onto the grid: only the overall factor between the sides is left to choose. */
function fitted(rows: RankRows, scales: Scales): Candidate {
  const { scaleA, scaleB, high } = scales;
  if (scaleA === null || scaleB === null) return withFreeScale(rows, scales);
  const grid = { scaleA, scaleB, high };
  const [fillA, fillB] = [largest(rows.a.map(peakOf)) / scaleA, largest(rows.b.map(peakOf)) / scaleB];
  const even = fillA === 0 || fillB === 0 ? 1 : Math.sqrt(fillB / fillA);
  const errors = new Map<number, number>();
  const errorAt = (index: number) => {
    const error = errors.get(index) ?? estimateError(rows, grid, even * shifts[index]);
    errors.set(index, error);
    return error;
  };
  const bestOf = (indices: number[]) =>
    indices.reduce((best, index) => (errorAt(index) < errorAt(best) ? index : best));
  const all = shifts.map((_, index) => index);
  const coarse = bestOf(all.filter((index) => index % coarseShifts === 0));
  const near = bestOf(all.filter((index) => Math.abs(index - coarse) < coarseShifts));
  return { rows: shiftScale(rows, even * shifts[near]), grid };
}

/**
 * Scales of a slot's two grids that several adapters can share, or that one adapter defines. Because every adapter may
 * shift an overall factor between its sides, only the product of the two scales limits what fits: the result is the
 * pair of the adapter that needs the largest product once it is aligned to itself.
 * @param headroom - factor on the product of both scales, for adapters to come that are larger than these; each doubling
 * costs 3 dB of the signal-to-noise ratio
 */
export function factorScales(
  adapters: Factors | readonly Factors[],
  bits: BitWidth,
  headroom = 1,
): { scaleA: number; scaleB: number } {
  const list: readonly Factors[] = "A" in adapters ? [adapters] : adapters;
  if (list.length === 0) throw new RangeError("no factors to choose scales from");
  const needs = list.map((factors) => needOf(factors, bits));
  const { scaleA, scaleB } = needs.reduce((most, need) => (need.product > most.product ? need : most));
  const room = Math.sqrt(headroom);
  return { scaleA: Math.fround(scaleA * room), scaleB: Math.fround(scaleB * room) };
}

interface ScaleNeed {
  scaleA: number;
  scaleB: number;
  product: number;
}

/** Factors are asked for once alone and once per group they belong to. */
const knownNeeds = new WeakMap<Factors, Map<BitWidth, ScaleNeed>>();

/** The scales that factors have once they are aligned to themselves. */
function needOf(factors: Factors, bits: BitWidth): ScaleNeed {
  const known = knownNeeds.get(factors) ?? new Map<BitWidth, ScaleNeed>();
  knownNeeds.set(factors, known);
  let need = known.get(bits);
  if (!need) {
    const { A, B, scaleA, scaleB } = alignToGrid({ ...factors, scaleA: null, scaleB: null, bits });
    // All-zero factors have scales of 1 that mean nothing.
    need = { scaleA, scaleB, product: A.some(Boolean) && B.some(Boolean) ? scaleA * scaleB : 0 };
    known.set(bits, need);
  }
  return need;
}

/**
 * `||quantized A quantized B - A B||_F / ||A B||_F` of factors as they are.
 * @param scales - those of both grids; null for those of the factor's peak
 */
export function productError(
  factors: Factors,
  bits: BitWidth,
  scales: Pick<AlignmentInput, "scaleA" | "scaleB"> = { scaleA: null, scaleB: null },
): number {
  const rows = toRows(factors);
  const grid = ownGrid(rows, {
    scaleA: checkScale(scales.scaleA),
    scaleB: checkScale(scales.scaleB),
    high: largestCode(bits),
  });
  return relativeDistance(quantizeRows(rows, grid), rows);
}

/**
 * Per-rank scaling of given factors: see {@link alignToGrid} for the parameters.
 * @returns factors with the same product
 */
export function balance(factors: Factors, bits: BitWidth, scaleA: number | null, scaleB: number | null): Factors {
  const { rows } = balanced(toRows(factors), { scaleA, scaleB, high: largestCode(bits) });
  return toFactors(rows, factors.inFeatures, factors.outFeatures);
}

/**
 * Factors in the singular value gauge, spread over all ranks and rotated to low peaks.
 * @returns factors with the same product
 */
export function rotate(factors: Factors): Factors {
  const rows = lowerPeaks(spreadRows(canonicalRows(toRows(factors))));
  return toFactors(rows, factors.inFeatures, factors.outFeatures);
}

function checkScale(scale: number | null): number | null {
  if (scale === null) return null;
  const rounded = Math.fround(scale);
  if (rounded > 0 && Number.isFinite(rounded)) return rounded;
  throw new InputError({
    what: "a quantization scale is unusable",
    expected: "a positive float32",
    got: String(scale),
  });
}

function checkFinite(values: Float32Array, factor: "A" | "B"): void {
  const index = values.findIndex((value) => !Number.isFinite(value));
  if (index >= 0)
    throw new InputError({
      what: `factor ${factor} is not finite`,
      got: `${values[index]} at element ${index}`,
      fix: "The adapter's training overflowed or its file is damaged: use another checkpoint.",
    });
}
