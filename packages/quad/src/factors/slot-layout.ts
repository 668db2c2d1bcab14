// How the two factors of a slot lie in memory. A LoRA's product is A B; its factors come in three forms:
//   in files      down [rank, in]                        up [out, rank]
//   as matrices   A [in, rank]                           B [rank, out]
//   as inputs     what the slot's shapes say, such as A [in, rank], B [rank, out] for a linear layer and
//                 A [rank, in / groups, kh, kw], B [out, rank, 1, 1] for a convolution
// `in` is everything but the rank: for a convolution in / groups * kh * kw.
import { InputError } from "@quad-lora/base";
import type { Slot } from "@quad-lora/runtime";
import type { Factors } from "../alignment/index.ts";

/** Shape of a graph input for factors; "rank" stands for the adapter's. */
export type FactorShape = Slot["shapeA"];

type SlotShapes = Pick<Slot, "name" | "shapeA" | "shapeB">;

/** A slot's factors in the layouts of its graph inputs. */
export interface GraphFactors {
  a: Float32Array;
  b: Float32Array;
}

/** A slot's factors as LoRA files hold them. */
export interface FileFactors {
  rank: number;
  /** `[rank, in]` */
  down: Float32Array;
  /** `[out, rank]` */
  up: Float32Array;
}

/** The graph inputs for factors, with their shapes. */
export function* slotInputs(slots: readonly Slot[]): Generator<[name: string, shape: FactorShape]> {
  for (const { inputA, shapeA, inputB, shapeB } of slots) {
    yield [inputA, shapeA];
    yield [inputB, shapeB];
  }
}

/** A factor's shape at one rank. */
export function factorDims(shape: FactorShape, rank: number): number[] {
  return shape.map((dim) => (dim === "rank" ? rank : dim));
}

/** Values of a factor per rank: a layer's fan-in for A, its fan-out for B. */
export function valuesPerRank(shape: FactorShape): number {
  return shape.reduce<number>((product, dim) => (dim === "rank" ? product : product * dim), 1);
}

/**
 * A factor in a graph input's layout with its ranks filled up with zeros: the product stays what it was.
 * @param rank - of `values`
 * @param wanted - of the result, at least `rank`
 * @returns `values` itself where nothing is to be added
 */
export function padRank<Values extends Float32Array | Int8Array | Int16Array>(
  values: Values,
  shape: FactorShape,
  rank: number,
  wanted: number,
): Values {
  if (rank === wanted) return values;
  const padded = new (values.constructor as new (length: number) => Values)(valuesPerRank(shape) * wanted);
  copyRanks(values, rank, padded, wanted, shape);
  return padded;
}

/**
 * Copies a factor's ranks over the first of a larger one, both in a graph input's layout; the other ranks stay as they are.
 * @param rank - of `values`
 * @param targetRank - of `target`, at least `rank`
 */
export function copyRanks<Values extends Float32Array | Int8Array | Int16Array>(
  values: Values,
  rank: number,
  target: Values,
  targetRank: number,
  shape: FactorShape,
): void {
  const inner = valuesPerRank(shape.slice(shape.indexOf("rank") + 1));
  const outer = values.length / (rank * inner);
  for (let row = 0; row < outer; row++) {
    target.set(values.subarray(row * rank * inner, (row + 1) * rank * inner), row * targetRank * inner);
  }
}

/**
 * Factors from a slot's graph inputs as matrices.
 * @param rank - of the factors
 * @param wanted - of the matrices: the factors are filled up with zeros
 */
export function graphToMatrices(slot: SlotShapes, { a, b }: GraphFactors, rank: number, wanted = rank): Factors {
  return {
    A: reorder(padRank(a, slot.shapeA, rank, wanted), rankEnd(slot, "shapeA"), "last", wanted),
    B: reorder(padRank(b, slot.shapeB, rank, wanted), rankEnd(slot, "shapeB"), "first", wanted),
    inFeatures: a.length / rank,
    rank: wanted,
    outFeatures: b.length / rank,
  };
}

/** Factors as matrices in the layouts of a slot's graph inputs. */
export function matricesToGraph(slot: SlotShapes, { A, B, rank }: Pick<Factors, "A" | "B" | "rank">): GraphFactors {
  return {
    a: reorder(A, "last", rankEnd(slot, "shapeA"), rank),
    b: reorder(B, "first", rankEnd(slot, "shapeB"), rank),
  };
}

/**
 * Factors of a LoRA file in the layouts of a slot's graph inputs.
 * @param wanted - rank of the result: the factors are filled up with zeros
 */
export function fileToGraph(slot: SlotShapes, { down, up, rank }: FileFactors, wanted = rank): GraphFactors {
  const a = reorder(down, "first", rankEnd(slot, "shapeA"), rank);
  const b = reorder(up, "last", rankEnd(slot, "shapeB"), rank);
  return { a: padRank(a, slot.shapeA, rank, wanted), b: padRank(b, slot.shapeB, rank, wanted) };
}

/** Factors from a slot's graph inputs as LoRA files hold them. */
export function graphToFile(slot: SlotShapes, { a, b }: GraphFactors, rank: number): FileFactors {
  return {
    rank,
    down: reorder(a, rankEnd(slot, "shapeA"), "first", rank),
    up: reorder(b, rankEnd(slot, "shapeB"), "last", rank),
  };
}

/** Which end of a factor's axes the rank is at: a factor is a matrix whose rows or whose columns are the ranks. */
type RankEnd = "first" | "last";

function rankEnd(slot: SlotShapes, which: "shapeA" | "shapeB"): RankEnd {
  const shape = slot[which];
  const axis = shape.indexOf("rank");
  if (axis === 0) return "first";
  if (axis > 0 && valuesPerRank(shape.slice(axis + 1)) === 1) return "last";
  throw new InputError({
    what: "a slot's factor has no rank at either end of its axes",
    where: `${slot.name}.${which}`,
    expected: `["rank", ...] or [..., "rank"], with axes of length 1 after it`,
    got: JSON.stringify(shape),
    fix: "Expose the model again.",
  });
}

function reorder(values: Float32Array, from: RankEnd, to: RankEnd, rank: number): Float32Array {
  if (from === to) return values;
  const others = values.length / rank;
  return from === "first" ? transpose(values, rank, others) : transpose(values, others, rank);
}

/** `[rows, columns]` -> `[columns, rows]` */
function transpose(matrix: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(matrix.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = matrix[row * columns + column];
  }
  return result;
}
