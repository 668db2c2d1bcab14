/**
 * What a layer with rounded operands computes exactly, and how far a result in float32 may lie from it. Processors add in
 * different orders (8 or 16 sums side by side, with fused multiplication or without), so two float results need not
 * agree; each has to agree with the exact one.
 */
import { elementCount, type Node, type Tensor } from "@quad-lora/onnx";
import { type Encoding, gridLimits, quantize } from "../../packages/quad/src/quantization/index.ts";

/** The largest relative error of one rounding to float32. */
const unitRoundoff = 2 ** -24;

/** One side of a product. */
export interface Operand {
  dims: readonly number[];
  values: Float64Array;
}

export interface Activation extends Operand {
  /** By how much an element may be off because it lies between two codes; 0 for most. */
  undecided: Float64Array;
  /** Step of the grid; 0 without one. */
  step: number;
}

/** An activation that is not rounded. */
export function unrounded(tensor: Tensor): Activation {
  const values = Float64Array.from(tensor.toFloat32());
  return { dims: tensor.dims, values, undecided: new Float64Array(values.length), step: 0 };
}

/**
 * An activation on a per-tensor grid, every element at the nearest code.
 *
 * Both graphs find 8-bit codes by the same float32 division, which IEEE 754 makes the same on every processor. They find
 * 16-bit codes in different ways: where `t = x / step` lies within `slack` of the middle between two codes, rounding decides
 * which of them it gets. With u the unit roundoff: the simulation clips to an end of the grid that was rounded, and divides,
 * 2 u |t|. The high byte is found from `(x + shift) / (256 step)`: the rounded shift of at most 128 steps, the sum and the
 * quotient, u (128 + 2 (|t| + 128)). The low byte is that of what is left of at most 256 steps: the product that is taken
 * off, the difference and the quotient, u (|t| + 256 + 2 * 256). All are less than 2 u (|t| + 512). A wrong high byte makes
 * the low byte saturate, so no code is off by more than one.
 */
export function onGrid(tensor: Tensor, encoding: Encoding): Activation {
  const [step] = encoding.scale;
  const [zero] = encoding.zeroPoint;
  const { low, high } = gridLimits(encoding);
  const given = tensor.toFloat32();
  const values = new Float64Array(given.length);
  const undecided = new Float64Array(given.length);
  for (const [index, value] of given.entries()) {
    const position = encoding.bits === 16 ? value / step : Math.fround(value / step);
    const below = Math.floor(position);
    const fromMiddle = position - below - 0.5;
    const isUp = fromMiddle > 0 || (fromMiddle === 0 && below % 2 !== 0);
    values[index] = step * Math.min(high - zero, Math.max(low - zero, below + (isUp ? 1 : 0)));
    const slack = 2 * unitRoundoff * (Math.abs(position) + 512);
    if (encoding.bits === 16 && Math.abs(fromMiddle) <= slack) undecided[index] = step;
  }
  return { dims: tensor.dims, values, undecided, step };
}

/** A weight on its symmetric grid, one scale per index of an axis. */
export function roundedWeight(tensor: Tensor, encoding: Encoding): Operand {
  const codes = quantize(tensor.toFloat32(), tensor.dims, encoding);
  const { scale, axis } = encoding;
  const inner = elementCount(tensor.dims.slice(axis! + 1));
  const values = Float64Array.from(codes, (code, index) => code * scale[Math.floor(index / inner) % scale.length]);
  return { dims: tensor.dims, values };
}

/** All by element, in the layout of the layer's output. */
export interface ExactLayer {
  values: Float64Array;
  /** The sum of the magnitudes of all that is added up: products and bias. */
  magnitudes: Float64Array;
  /** How far operands that lie between two codes can move the result. */
  undecided: Float64Array;
  /** How far one step in every left operand, padding included, can move the result. */
  reach: Float64Array;
  /** Number of products in each sum. */
  terms: number;
}

/**
 * The layer in float64, whose own roundings are 2^-29 of float32's.
 * @param node - MatMul, Gemm or Conv: how left and right are multiplied
 * @param bias - `[columns]`
 * @param factor - what the products are multiplied by
 */
export function exactLayer(
  node: Node,
  left: Activation,
  right: Operand,
  bias: Float32Array | null = null,
  factor = 1,
): ExactLayer {
  const form =
    node.opType === "Conv" ? convolutionForm(node, left.dims, right.dims) : matrixForm(node, left.dims, right.dims);
  const { batches, rows, inner, columns, leftAt, rightAt, outputAt } = form;
  const make = () => new Float64Array(batches * rows * columns);
  const exact: ExactLayer = { values: make(), magnitudes: make(), undecided: make(), reach: make(), terms: inner };
  const [value, magnitude, undecided, reach] = [0, 1, 2, 3].map(() => new Float64Array(columns));
  const matrix = new Float64Array(inner * columns);
  for (let batch = 0; batch < batches; batch++) {
    reach.fill(0);
    for (let at = 0; at < matrix.length; at++) {
      const column = at % columns;
      const from = rightAt(batch, (at - column) / columns, column);
      matrix[at] = from < 0 ? 0 : factor * right.values[from];
      reach[column] += left.step * Math.abs(matrix[at]);
    }
    for (let row = 0; row < rows; row++) {
      for (const sums of [value, magnitude, undecided]) sums.fill(0);
      for (let k = 0; k < inner; k++) {
        const from = leftAt(batch, row, k);
        if (from < 0) continue;
        const a = left.values[from];
        if (a === 0 && left.undecided[from] === 0) continue;
        for (let column = 0, at = k * columns; column < columns; column++, at++) {
          const product = a * matrix[at];
          value[column] += product;
          magnitude[column] += Math.abs(product);
        }
        const error = left.undecided[from];
        if (error === 0) continue;
        for (let column = 0, at = k * columns; column < columns; column++, at++) {
          undecided[column] += error * Math.abs(matrix[at]);
        }
      }
      for (let column = 0; column < columns; column++) {
        const to = outputAt(batch, row, column);
        const added = bias?.[column] ?? 0;
        exact.values[to] = value[column] + added;
        exact.magnitudes[to] = magnitude[column] + Math.abs(added);
        exact.undecided[to] = undecided[column];
        exact.reach[to] = reach[column];
      }
    }
  }
  return exact;
}

/** A layer as products of matrices; functions give an element's index, -1 for a zero that is not stored. */
interface Form {
  batches: number;
  rows: number;
  inner: number;
  columns: number;
  leftAt: (batch: number, row: number, k: number) => number;
  rightAt: (batch: number, k: number, column: number) => number;
  outputAt: (batch: number, row: number, column: number) => number;
}

function matrixForm(node: Node, left: readonly number[], right: readonly number[]): Form {
  const isTransposed = node.opType === "Gemm" && node.int("transB", 0) === 1;
  const [inner, columns] = isTransposed ? right.toReversed() : right.slice(-2);
  const batches = elementCount(right.slice(0, -2));
  const rows = elementCount(left) / inner / batches;
  return {
    batches,
    rows,
    inner,
    columns,
    leftAt: (batch, row, k) => (batch * rows + row) * inner + k,
    rightAt: (batch, k, column) => (isTransposed ? column * inner + k : (batch * inner + k) * columns + column),
    outputAt: (batch, row, column) => (batch * rows + row) * columns + column,
  };
}

function convolutionForm(node: Node, left: readonly number[], right: readonly number[]): Form {
  const [batches, channels, height, width] = left;
  const [columns, perGroup, ...kernel] = right;
  const [strides, dilations] = ["strides", "dilations"].map((name) => node.ints(name, [1, 1]));
  const pads = node.ints("pads", [0, 0, 0, 0]);
  const group = channels / perGroup;
  // By the operator's definition.
  const [tall, wide] = [height, width].map(
    (size, axis) =>
      Math.floor((size + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1) / strides[axis]) + 1,
  );
  const positions = kernel[0] * kernel[1];
  return {
    batches,
    rows: tall * wide,
    inner: channels * positions,
    columns,
    leftAt: (batch, row, k) => {
      const position = k % positions;
      const channel = (k - position) / positions;
      const x = (row % wide) * strides[1] - pads[1] + (position % kernel[1]) * dilations[1];
      const y = Math.floor(row / wide) * strides[0] - pads[0] + Math.floor(position / kernel[1]) * dilations[0];
      return x < 0 || x >= width || y < 0 || y >= height ? -1 : ((batch * channels + channel) * height + y) * width + x;
    },
    rightAt: (_, k, column) => {
      const within = k - Math.floor((column * group) / columns) * perGroup * positions;
      return within < 0 || within >= perGroup * positions ? -1 : column * perGroup * positions + within;
    },
    outputAt: (batch, row, column) => (batch * columns + column) * tall * wide + row,
  };
}

/** How a graph computes a layer: in float32, on the integer codes, or on the bytes of 16-bit codes (see `byte-planes.ts`). */
export type Arithmetic = "float sums" | "integer sums" | "byte planes";

/**
 * How far a float32 result may lie from the exact one, by element. With u the unit roundoff, S the layer's magnitudes
 * and g(n) = n u / (1 - n u), the error of n roundings one after another (Higham, Accuracy and Stability of Numerical
 * Algorithms, lemma 3.1):
 *
 * - Float sums: both operands are rounded when their codes are multiplied by their scales, then each product, each of
 *   n additions in whatever order (the bias is one), and a factor that follows: g(n + 4) S.
 * - Integer sums are exact. The sum made a float, the product of the scales, the product of both and the addition of the
 *   bias round, or in place of the bias the scale that takes a factor in: g(4) S.
 * - Byte planes: the same for both planes P, and once more where 256 P_high + P_low is added up. The planes are larger than
 *   their sum: 256 |h - zh| + |l - zh| <= |c - z| + |l - zl| + |l - zh| <= |c - z| + 510 steps. So is the bias, which
 *   takes |zl - zh| <= 255 steps of the weights' sum back; it rounds when that sum and when itself is made a float, when it
 *   is added and when the planes are. Where the layer's bias cannot go into it, it is added behind: g(6) (S + 765 reach).
 *
 * What lies between two codes comes on top.
 */
export function allowedError({ magnitudes, undecided, reach, terms }: ExactLayer, how: Arithmetic): Float64Array {
  const roundings = { "float sums": terms + 4, "integer sums": 4, "byte planes": 6 }[how];
  const relative = (roundings * unitRoundoff) / (1 - roundings * unitRoundoff);
  const planes = how === "byte planes" ? 765 : 0;
  return magnitudes.map((size, index) => relative * (size + planes * reach[index]) + undecided[index]);
}

/** The largest error as a share of what is allowed: above 1, rounding does not explain it. */
export function shareOfAllowed(found: Float32Array, exact: ExactLayer, how: Arithmetic): number {
  const allowed = allowedError(exact, how);
  if (found.length !== allowed.length) throw new RangeError(`${found.length} elements, expected ${allowed.length}`);
  let share = 0;
  for (const [index, value] of found.entries()) {
    const error = Math.abs(value - exact.values[index]);
    if (Number.isNaN(error)) return Number.POSITIVE_INFINITY;
    if (error > 0) share = Math.max(share, error / allowed[index]);
  }
  return share;
}
