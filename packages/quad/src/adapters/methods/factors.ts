import { type AdapterTarget, targetModules } from "../names/target.ts";

type Shape = readonly number[];

/** Shapes of one layer's tensors as a file holds them. */
export interface FactorShapes {
  readonly down: Shape;
  readonly up: Shape;
  /** Core of a Tucker-decomposed convolution. */
  readonly mid?: Shape;
}

/** The ranks of factors that fit, or what does not fit. */
export type FactorCheck =
  | {
      /** Rank of the product: columns of `up`. */
      readonly rank: number;
      /** Rank that alpha is divided by: rows of the file's `down`. */
      readonly scaleRank: number;
    }
  | { readonly expected: string; readonly got: string };

const show = (shape: Shape | readonly string[]) => `[${shape.join(", ")}]`;

/** `[rows, columns]` as a matrix or as the weight of a 1x1 convolution: files mix the two freely. */
function isMatrix(shape: Shape, rows: number, columns: number): boolean {
  const trailing = shape.slice(2);
  return (
    shape[0] === rows &&
    shape[1] === columns &&
    (trailing.length === 0 || (trailing.length === 2 && trailing.every((size) => size === 1)))
  );
}

/** Whether a file's factors fit the modules they are for. A slice's outputs are checked where slices are merged. */
export function checkFactors(shapes: FactorShapes, target: AdapterTarget): FactorCheck {
  const modules = targetModules(target);
  const module = modules[0];
  const inputs = module.inFeatures / (module.groups ?? 1);
  const outputs = modules.reduce((total, { outFeatures }) => total + outFeatures, 0);
  const kernel = module.kind === "conv" ? (module.kernel ?? [1, 1]) : [1, 1];
  const isPointwise = kernel.every((size) => size === 1);
  const { down, up, mid } = shapes;
  const rank = up[1] ?? 0;
  const scaleRank = down[0] ?? 0;
  const upRows = target.kind === "slice" ? (target.sizes?.[target.index] ?? up[0] ?? 0) : outputs;
  const upFits = isMatrix(up, upRows, rank);
  // Some methods keep a convolution's factor as a matrix.
  const flat = [scaleRank, inputs * kernel[0] * kernel[1]];
  const downFits =
    mid || isPointwise
      ? isMatrix(down, scaleRank, inputs)
      : [show([scaleRank, inputs, ...kernel]), show(flat)].includes(show(down));
  const midFits = mid ? show(mid) === show([rank, scaleRank, ...kernel]) : rank === scaleRank;
  if (rank > 0 && scaleRank > 0 && upFits && downFits && midFits) return { rank, scaleRank };
  const kernelSizes = isPointwise ? [] : kernel.map(String);
  const expected = [
    `down ${show(["rank", String(inputs), ...(mid ? [] : kernelSizes)])}`,
    ...(mid ? [`mid ${show(["rank", "rank", ...kernel.map(String)])}`] : []),
    `up ${show([target.kind === "slice" && !target.sizes ? "outputs" : String(upRows), "rank"])}`,
  ];
  const got = [`down ${show(down)}`, ...(mid ? [`mid ${show(mid)}`] : []), `up ${show(up)}`];
  return { expected: expected.join(" and "), got: got.join(" and ") };
}

/**
 * Composes a Tucker-decomposed convolution's first two layers into one down factor:
 * `composed[i, c, h, w] = sum over j of mid[i, j, h, w] * down[j, c]`, as the 1x1 convolution `down` feeds `mid`
 * (LyCORIS, LoCon with `use_tucker`; `rebuild_tucker` there).
 * @param mid - `[outerRank, innerRank, positions]`.
 * @param down - `[innerRank, inputs]`.
 * @returns `[outerRank, inputs, positions]`.
 */
export function composeTucker(
  mid: Float32Array,
  down: Float32Array,
  outerRank: number,
  innerRank: number,
  inputs: number,
): Float32Array {
  const positions = mid.length / (outerRank * innerRank);
  const sums = new Float64Array(outerRank * inputs * positions);
  for (let i = 0; i < outerRank; i++)
    for (let j = 0; j < innerRank; j++)
      for (let c = 0; c < inputs; c++) {
        const weight = down[j * inputs + c];
        const target = (i * inputs + c) * positions;
        const source = (i * innerRank + j) * positions;
        for (let p = 0; p < positions; p++) sums[target + p] += mid[source + p] * weight;
      }
  return Float32Array.from(sums);
}

/** `up [out, rank]` with the halves of its rows changed over. */
export function swapHalves(up: Float32Array): Float32Array {
  const half = up.length / 2;
  const swapped = new Float32Array(up.length);
  swapped.set(up.subarray(half));
  swapped.set(up.subarray(0, half), half);
  return swapped;
}

/** Factors of one of the separate projections that a fused module consists of. */
export interface ProjectionFactors {
  readonly index: number;
  readonly rank: number;
  /** `[rank, in]` */
  readonly down: Float32Array;
  /** `[part of out, rank]` */
  readonly up: Float32Array;
}

/**
 * Factors of a fused projection from those of its parts: the downs one below the other, the ups block-diagonal.
 * Parts without factors stay unchanged, which needs the sizes to be known, or all parts to be of equal size.
 * @param count - Number of parts in the fused module.
 * @param outputs - Outputs of the fused module.
 * @param known - Outputs of every part, where they are known.
 */
export function mergeProjections(
  parts: readonly ProjectionFactors[],
  count: number,
  outputs: number,
  known?: readonly number[],
): { rank: number; down: Float32Array; up: Float32Array } | { expected: string; got: string } {
  const sizes = parts.map(({ up, rank }) => up.length / rank);
  const isComplete = parts.length === count;
  const fits = isComplete
    ? sizes.reduce((total, size) => total + size, 0) === outputs
    : known !== undefined || sizes.every((size) => size * count === outputs);
  if (!fits)
    return {
      expected: isComplete ? `${outputs} outputs together` : `${outputs / count} outputs each`,
      got: `${sizes.join(" + ")} outputs`,
    };
  const ordered = [...parts].sort((a, b) => a.index - b.index);
  const rank = ordered.reduce((total, part) => total + part.rank, 0);
  const down = new Float32Array(ordered.reduce((total, part) => total + part.down.length, 0));
  const up = new Float32Array(outputs * rank);
  let rankStart = 0;
  let downStart = 0;
  let nextRow = 0;
  for (const part of ordered) {
    const rows = part.up.length / part.rank;
    const firstRow = isComplete
      ? nextRow
      : (known?.slice(0, part.index).reduce((a, b) => a + b, 0) ?? part.index * rows);
    for (let row = 0; row < rows; row++)
      up.set(part.up.subarray(row * part.rank, (row + 1) * part.rank), (firstRow + row) * rank + rankStart);
    down.set(part.down, downStart);
    downStart += part.down.length;
    rankStart += part.rank;
    nextRow = firstRow + rows;
  }
  return { rank, down, up };
}
