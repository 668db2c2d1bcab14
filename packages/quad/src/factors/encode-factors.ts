import type { SafetensorsInput } from "@quad-lora/base";
import type { Slot } from "@quad-lora/runtime";
import { alignToGrid, type Factors, factorScales, productError } from "../alignment/index.ts";
import { type BitWidth, clippedShare, dequantize, type Encoding, quantize } from "../quantization/index.ts";
import { factorDims, graphToMatrices, matricesToGraph } from "./slot-layout.ts";

/** Scales of one slot's two factors: symmetric, one for the whole tensor, shared by all adapters of a profile. */
export interface SlotScales {
  a: number;
  b: number;
}

/** An adapter's factors by slot name, as matrices: A `[in, rank]` (convolutions: `[in * kh * kw, rank]`), B `[rank, out]`. */
export type AdapterFactors = Map<string, Factors>;

/** An adapter's tensors (in graph layout, of rank `fileRank`) as matrices of rank `rank`; slots that it lacks are left out. */
export function factorsOf(
  tensors: ReadonlyMap<string, Float32Array>,
  slots: readonly Slot[],
  fileRank: number,
  rank: number,
): AdapterFactors {
  const factors: AdapterFactors = new Map();
  for (const slot of slots) {
    const a = tensors.get(slot.inputA);
    const b = tensors.get(slot.inputB);
    if (a && b) factors.set(slot.name, graphToMatrices(slot, { a, b }, fileRank, rank));
  }
  return factors;
}

/**
 * Scales of every slot from the adapters that define the profile. Slots that none of them has take the others' median.
 * @param align - whether adapters will be aligned to the scales; else they reach as far as the factors do as they are
 */
export function slotScales(
  adapters: readonly AdapterFactors[],
  slots: readonly Slot[],
  bits: BitWidth,
  headroom: number,
  align = true,
): Map<string, SlotScales> {
  const scales = new Map<string, SlotScales>();
  for (const slot of slots) {
    const present = adapters.map((adapter) => adapter.get(slot.name)).filter((factors) => factors !== undefined);
    if (present.length === 0) continue;
    const { scaleA, scaleB } = align ? factorScales(present, bits, headroom) : peakScales(present, bits, headroom);
    scales.set(slot.name, { a: scaleA, b: scaleB });
  }
  const median = (values: number[]) => values.sort((x, y) => x - y)[values.length >> 1] ?? 1 / 127;
  const fallback = {
    a: median([...scales.values()].map(({ a }) => a)),
    b: median([...scales.values()].map(({ b }) => b)),
  };
  for (const slot of slots) if (!scales.has(slot.name)) scales.set(slot.name, fallback);
  return scales;
}

/** Scales that reach the largest magnitudes of all factors, with headroom on their product. */
function peakScales(adapters: readonly Factors[], bits: BitWidth, headroom: number) {
  const room = Math.sqrt(headroom) / (2 ** (bits - 1) - 1);
  const reach = (side: "A" | "B") => {
    const peak = adapters.reduce(
      (most, { [side]: values }) => values.reduce((a, b) => Math.max(a, Math.abs(b)), most),
      0,
    );
    return Math.fround((peak || 1) * room);
  };
  return { scaleA: reach("A"), scaleB: reach("B") };
}

/** How one slot of an adapter fits its scales. */
export interface SlotFit {
  slot: string;
  /** Relative error of the product A B on the grid, Frobenius norm. */
  error: number;
  /** The same without alignment. */
  errorBefore: number;
  clippedA: number;
  clippedB: number;
}

export interface EncodedAdapter {
  rank: number;
  /** Codes in the graph inputs' layouts. */
  codes: SafetensorsInput[];
  /** What the codes stand for, float32, in the graph inputs' layouts. */
  values: SafetensorsInput[];
  fit: SlotFit[];
}

/**
 * Encodes an adapter on shared scales. With `align`, its factors are first brought into the gauge `(A G)(G^-1 B)` that fits
 * the scales best: exact in full precision.
 */
export function encodeAdapter(
  factors: AdapterFactors,
  slots: readonly Slot[],
  scales: ReadonlyMap<string, SlotScales>,
  bits: BitWidth,
  align: boolean,
): EncodedAdapter {
  const codes: SafetensorsInput[] = [];
  const values: SafetensorsInput[] = [];
  const fit: SlotFit[] = [];
  let rank = 0;
  for (const slot of slots) {
    const given = factors.get(slot.name);
    const scale = scales.get(slot.name);
    if (!given || !scale) continue;
    rank = given.rank;
    const placed = align
      ? alignToGrid({ ...given, scaleA: scale.a, scaleB: scale.b, bits, refine: true })
      : plain(given, scale, bits);
    fit.push({
      slot: slot.name,
      error: placed.error,
      errorBefore: placed.errorBefore,
      clippedA: placed.clippedA,
      clippedB: placed.clippedB,
    });
    const { a, b } = matricesToGraph(slot, { ...placed, rank });
    for (const [name, data, shape, step] of [
      [slot.inputA, a, slot.shapeA, scale.a],
      [slot.inputB, b, slot.shapeB, scale.b],
    ] as const) {
      const dims = factorDims(shape, rank);
      const encoding = factorEncoding(step, bits);
      const quantized = quantize(data, dims, encoding);
      codes.push({ name, dtype: bits === 8 ? "I8" : "I16", shape: dims, data: quantized });
      values.push({ name, dtype: "F32", shape: dims, data: dequantize(quantized, dims, encoding) });
    }
  }
  return { rank, codes, values, fit };
}

export function factorEncoding(scale: number, bits: BitWidth): Encoding {
  return { bits, signed: true, symmetric: true, scale: Float32Array.of(scale), zeroPoint: Int32Array.of(0) };
}

/** The factors as they are, without alignment. */
function plain({ A, B, ...sizes }: Factors, scale: SlotScales, bits: BitWidth) {
  const error = productError({ A, B, ...sizes }, bits, { scaleA: scale.a, scaleB: scale.b });
  const clippedA = clippedShare(A, factorEncoding(scale.a, bits));
  const clippedB = clippedShare(B, factorEncoding(scale.b, bits));
  return { A, B, error, errorBefore: error, clippedA, clippedB };
}
