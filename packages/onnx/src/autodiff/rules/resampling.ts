import type { Node } from "../../ir/node.ts";
import type { Value } from "../../ir/value.ts";
import { type Builder, range } from "../builder.ts";
import { type GradientRule, type RuleCall, unsupported } from "../rule.ts";
import { positive } from "./shape.ts";

/** Rules of operators whose output elements are fixed combinations of input elements along each axis. */
export const resamplingRules = {
  Resize: (call) => [() => resizeGradient(call), null, null, null],
  Pad: (call) => [() => padGradient(call), null, null, null],
} satisfies Record<string, GradientRule>;

function padGradient(call: RuleCall): Value {
  const { node, build: b, gradient } = call;
  const dims = b.dims(node.input(0));
  const pads = b.requiredNumbers(node, 1);
  const axes = (node.inputs[3] ? b.requiredNumbers(node, 3) : range(0, dims.length)).map((axis) =>
    positive(axis, dims.length),
  );
  const mode = node.string("mode", "constant");
  if (mode === "constant") {
    const before = dims.map(() => 0);
    const after = dims.map(() => 0);
    axes.forEach((axis, index) => {
      before[axis] = -pads[index];
      after[axis] = -pads[index + axes.length];
    });
    const isCut = [...before, ...after].every((count) => count <= 0);
    if (!isCut) return b.pad(gradient, before, after);
    const touched = range(0, dims.length).filter((axis) => before[axis] !== 0 || after[axis] !== 0);
    const starts = touched.map((axis) => -before[axis]);
    return b.slice(
      gradient,
      touched,
      starts,
      touched.map((axis) => dims[axis] - before[axis]),
    );
  }
  const source = sourceIndex(mode);
  if (!source) throw unsupported(call, `Pad in mode ${mode}`, "Use constant, reflect, edge or wrap.");
  return axes.reduce((value, axis, index) => {
    const [before, after] = [pads[index], pads[index + axes.length]];
    if (before === 0 && after === 0) return value;
    const matrix = range(-before, dims[axis] + after).map((position) => unit(dims[axis], source(position, dims[axis])));
    return b.contract(value, axis, matrix);
  }, gradient);
}

/** Which input element stands at a position outside `[0, length)`. */
function sourceIndex(mode: string): ((position: number, length: number) => number) | null {
  switch (mode) {
    case "edge":
      return clamp;
    case "wrap":
      return (position, length) => ((position % length) + length) % length;
    case "reflect":
      return (position, length) => {
        const period = Math.max(1, 2 * (length - 1));
        const offset = ((position % period) + period) % period;
        return offset < length ? offset : period - offset;
      };
    default:
      return null;
  }
}

function unit(length: number, index: number): number[] {
  const row = new Array<number>(length).fill(0);
  row[index] = 1;
  return row;
}

function clamp(position: number, length: number): number {
  return Math.min(Math.max(position, 0), length - 1);
}

function resizeGradient(call: RuleCall): Value {
  const { node, build: b, gradient } = call;
  if (node.int("antialias", 0))
    throw unsupported(call, "Resize with antialias", "Export the model without antialiasing.");
  const input = b.dims(node.input(0));
  const output = b.dims(node.output());
  const matrices = range(0, input.length).map((axis) => interpolationMatrix(call, axis, input[axis], output[axis]));
  const repeats = matrices.map(repetition);
  // The usual upsampling of pictures: a window's sum is its average times its size, in one operator that stays in the
  // layout of the convolutions around it.
  if (repeats.length > 2 && repeats[0] === 1 && repeats[1] === 1 && repeats.every((count) => count !== null)) {
    const window = repeats.slice(2) as number[];
    const size = window.reduce((product, count) => product * count, 1);
    if (size === 1) return gradient;
    const average = b.op("AveragePool", [gradient], input, { kernel_shape: window, strides: window });
    return b.mul(average, size);
  }
  return matrices.reduce(
    (value, matrix, axis) => (repeats[axis] === 1 ? value : applyTransposed(b, value, axis, matrix)),
    gradient,
  );
}

/** How often every element is repeated, where the matrix does nothing else. */
function repetition(matrix: readonly number[][]): number | null {
  const factor = matrix.length / matrix[0].length;
  return Number.isInteger(factor) && matrix.every((row, index) => row[Math.floor(index / factor)] === 1)
    ? factor
    : null;
}

/** Repetition of every element a whole number of times is a reshape and a sum. */
function applyTransposed(b: Builder, value: Value, axis: number, matrix: readonly number[][]): Value {
  const factor = repetition(matrix);
  if (factor === null) return b.contract(value, axis, matrix);
  const dims = b.dims(value);
  const length = matrix[0].length;
  const split = b.reshape(value, [...dims.slice(0, axis), length, factor, ...dims.slice(axis + 1)]);
  return b.reshape(
    b.reduce("ReduceSum", split, [axis + 1]),
    dims.map((dim, index) => (index === axis ? length : dim)),
  );
}

/** Row o holds the weights with which output o combines the input elements of one axis. Source: ONNX, Resize. */
function interpolationMatrix(call: RuleCall, axis: number, length: number, count: number): number[][] {
  const { node } = call;
  const mode = node.string("mode", "nearest");
  const origin = originalCoordinate(call, axis, length, count);
  return range(0, count).map((position) => {
    const x = origin(position);
    if (mode === "nearest") return unit(length, clamp(nearest(node, x), length));
    if (mode !== "linear" && mode !== "cubic")
      throw unsupported(call, `Resize in mode ${mode}`, "Use nearest, linear or cubic.");
    const base = Math.floor(x);
    const taps = mode === "linear" ? linearTaps(x - base) : cubicTaps(x - base, node.float("cubic_coeff_a", -0.75));
    const row = new Array<number>(length).fill(0);
    const isExcluded = (index: number) => node.int("exclude_outside", 0) === 1 && (index < 0 || index >= length);
    let total = 0;
    for (const { offset, weight } of taps) {
      if (isExcluded(base + offset)) continue;
      row[clamp(base + offset, length)] += weight;
      total += weight;
    }
    return row.map((weight) => weight / total);
  });
}

function linearTaps(t: number) {
  return [
    { offset: 0, weight: 1 - t },
    { offset: 1, weight: t },
  ];
}

/** Keys' kernel with parameter a, at distances 1 + t, t, 1 - t, 2 - t. */
function cubicTaps(t: number, a: number) {
  const near = (d: number) => ((a + 2) * d - (a + 3)) * d * d + 1;
  const far = (d: number) => ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
  return [
    { offset: -1, weight: far(1 + t) },
    { offset: 0, weight: near(t) },
    { offset: 1, weight: near(1 - t) },
    { offset: 2, weight: far(2 - t) },
  ];
}

function nearest(node: Node, x: number): number {
  switch (node.string("nearest_mode", "round_prefer_floor")) {
    case "floor":
      return Math.floor(x);
    case "ceil":
      return Math.ceil(x);
    case "round_prefer_ceil":
      return Math.floor(x + 0.5);
    default:
      return Math.ceil(x - 0.5);
  }
}

/** Maps an output position to a place in the input, by coordinate_transformation_mode. */
function originalCoordinate(call: RuleCall, axis: number, length: number, count: number): (position: number) => number {
  const { node } = call;
  // In float32 as runtimes compute it: where a place falls on a whole number, rounding decides the neighbour.
  const scale = Math.fround(scaleOf(call, axis, length, count));
  const fromCentre = (x: number) => Math.fround(Math.fround((x + 0.5) / scale) - 0.5);
  const mode = node.string("coordinate_transformation_mode", "half_pixel");
  switch (mode) {
    case "half_pixel":
      return fromCentre;
    case "half_pixel_symmetric": {
      const offset = (length / 2) * (1 - count / (scale * length));
      return (x) => Math.fround(offset + fromCentre(x));
    }
    case "pytorch_half_pixel":
      return (x) => (count > 1 ? fromCentre(x) : 0);
    case "align_corners":
      return (x) => (count > 1 ? Math.fround((x * (length - 1)) / (count - 1)) : 0);
    case "asymmetric":
      return (x) => Math.fround(x / scale);
    default:
      throw unsupported(
        call,
        `Resize with coordinate_transformation_mode ${mode}`,
        "Use half_pixel, align_corners or asymmetric.",
      );
  }
}

function scaleOf({ node, build: b }: RuleCall, axis: number, length: number, count: number): number {
  const rank = b.dims(node.input(0)).length;
  const axes = node.ints("axes", range(0, rank)).map((value) => positive(value, rank));
  const place = axes.indexOf(axis);
  if (place < 0) return 1;
  const scales = node.inputs[2] && b.dims(node.input(2))[0] !== 0 ? b.requiredNumbers(node, 2) : null;
  return scales?.[place] ?? count / length;
}
