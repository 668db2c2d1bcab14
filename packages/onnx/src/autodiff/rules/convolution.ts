import type { Node } from "../../ir/node.ts";
import { elementCount } from "../../ir/tensor.ts";
import type { Value } from "../../ir/value.ts";
import { type Builder, range, sameDims } from "../builder.ts";
import type { GradientRule } from "../rule.ts";

/** The geometry of a convolution, per spatial axis. */
interface Geometry {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  readonly before: readonly number[];
  readonly after: readonly number[];
  readonly group: number;
}

export const convolutionRules = {
  // x [N, C, ...], w [M, C / group, ...], y [N, M, ...]
  Conv: ({ node, build: b, gradient }) => {
    const [x, w] = [node.input(0), node.input(1)];
    const geometry = convolutionGeometry(b, node, b.dims(x), b.dims(w));
    return [
      () => inputGradient(b, w, gradient, b.dims(x), geometry),
      () => weightGradient(b, x, gradient, b.dims(w), geometry),
      () => channelSums(b, gradient),
    ];
  },
  // x [N, C, ...], w [C, M / group, ...], y [N, M, ...]: the gradient of a convolution from y to x
  ConvTranspose: ({ node, build: b, gradient }) => {
    const [x, w] = [node.input(0), node.input(1)];
    const geometry = transposedGeometry(b, node, b.dims(x), b.dims(w), b.dims(gradient));
    return [
      () => convolve(b, gradient, w, b.dims(x), geometry),
      () => weightGradient(b, gradient, x, b.dims(w), geometry),
      () => channelSums(b, gradient),
    ];
  },
} satisfies Record<string, GradientRule>;

function channelSums(b: Builder, gradient: Value): Value {
  const dims = b.dims(gradient);
  const axes = range(0, dims.length).filter((axis) => axis !== 1);
  return b.reshape(b.reduce("ReduceSum", gradient, axes), [dims[1]]);
}

function convolutionGeometry(b: Builder, node: Node, x: readonly number[], w: readonly number[]): Geometry {
  const kernel = w.slice(2);
  const ones = kernel.map(() => 1);
  const strides = node.ints("strides", ones);
  const dilations = node.ints("dilations", ones);
  const output = b.dims(node.output()).slice(2);
  const needed = (axis: number) =>
    Math.max(0, (output[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - x[axis + 2]);
  return { kernel, strides, dilations, ...resolvePads(node, kernel.length, needed), group: node.int("group", 1) };
}

function transposedGeometry(
  b: Builder,
  node: Node,
  x: readonly number[],
  w: readonly number[],
  y: readonly number[],
): Geometry {
  const kernel = w.slice(2);
  const ones = kernel.map(() => 1);
  const strides = node.ints("strides", ones);
  const dilations = node.ints("dilations", ones);
  const outputPadding = node.ints(
    "output_padding",
    kernel.map(() => 0),
  );
  // output = stride (input - 1) + output_padding + dilation (kernel - 1) + 1 - pads
  const needed = (axis: number) =>
    strides[axis] * (x[axis + 2] - 1) +
    outputPadding[axis] +
    dilations[axis] * (kernel[axis] - 1) +
    1 -
    b.dims(node.output())[axis + 2];
  const isAutomatic = node.attributes.has("output_shape") || node.string("auto_pad", "NOTSET").startsWith("SAME");
  const pads = isAutomatic ? evenPads(kernel.length, needed, node.string("auto_pad", "NOTSET") === "SAME_UPPER") : null;
  const { before } = pads ?? resolvePads(node, kernel.length, needed);
  // What a convolution from y to x needs behind, whatever output_padding added there.
  const after = before.map(
    (pad, axis) => (x[axis + 2] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - y[axis + 2] - pad,
  );
  return { kernel, strides, dilations, before, after, group: node.int("group", 1) };
}

/** Pads from the attribute or from auto_pad; `needed` is the total that an axis needs for its output length. */
function resolvePads(node: Node, rank: number, needed: (axis: number) => number) {
  const mode = node.string("auto_pad", "NOTSET");
  if (mode === "SAME_UPPER" || mode === "SAME_LOWER") return evenPads(rank, needed, mode === "SAME_UPPER");
  const pads = mode === "VALID" ? [] : node.ints("pads", []);
  const at = (index: number) => pads[index] ?? 0;
  return { before: range(0, rank).map(at), after: range(rank, 2 * rank).map(at) };
}

function evenPads(rank: number, needed: (axis: number) => number, isUpper: boolean) {
  const total = range(0, rank).map(needed);
  const small = total.map((pad) => Math.floor(pad / 2));
  const large = total.map((pad, axis) => pad - small[axis]);
  return isUpper ? { before: small, after: large } : { before: large, after: small };
}

/** A Conv without bias whose output is cut or zero-extended to `dims`. */
function convolve(b: Builder, x: Value, w: Value, dims: readonly number[], geometry: Geometry): Value {
  const { kernel, strides, dilations, group } = geometry;
  // Negative pads (more output padding than the stride) cut the input instead.
  const clipped = (pads: readonly number[]) => pads.map((pad) => Math.min(pad, 0));
  const input = b.pad(x, [0, 0, ...clipped(geometry.before)], [0, 0, ...clipped(geometry.after)]);
  const pads = [...geometry.before, ...geometry.after].map((pad) => Math.max(pad, 0));
  return b.op("Conv", [input, w], dims, { kernel_shape: kernel, strides, dilations, pads, group });
}

/** dx of y = Conv(x, w). With stride 1 a convolution of dy with the rotated kernel, ORT's fastest path. */
function inputGradient(b: Builder, w: Value, gradient: Value, x: readonly number[], geometry: Geometry): Value {
  const { kernel, strides, dilations, before, after, group } = geometry;
  const reach = kernel.map((length, axis) => dilations[axis] * (length - 1));
  const isDense = strides.every((stride) => stride === 1);
  if (isDense && reach.every((length, axis) => before[axis] <= length && after[axis] <= length)) {
    const rotated = rotateKernel(b, w, group);
    const around = {
      ...geometry,
      before: reach.map((r, axis) => r - before[axis]),
      after: reach.map((r, axis) => r - after[axis]),
    };
    return convolve(b, gradient, rotated, x, around);
  }
  const output = b.dims(gradient).slice(2);
  // Input rows behind the last full stride are never read: output_padding makes room for them.
  const unread = output.map(
    (length, axis) => x[axis + 2] - ((length - 1) * strides[axis] + reach[axis] + 1 - before[axis] - after[axis]),
  );
  return b.op("ConvTranspose", [gradient, w], x, {
    kernel_shape: kernel,
    strides,
    dilations,
    pads: [...before, ...after],
    output_padding: unread,
    group,
  });
}

/** [M, C / group, ...] -> [C, M / group, ...], each kernel turned by 180 degrees. Folding computes it once for constants. */
function rotateKernel(b: Builder, w: Value, group: number): Value {
  const [m, perGroup, ...kernel] = b.dims(w);
  const spatial = range(0, kernel.length);
  const turned = b.flip(
    w,
    spatial.map((axis) => axis + 2),
  );
  if (group === 1) return b.transpose(turned, [1, 0, ...spatial.map((axis) => axis + 2)]);
  const grouped = b.reshape(turned, [group, m / group, perGroup, ...kernel]);
  const swapped = b.transpose(grouped, [0, 2, 1, ...spatial.map((axis) => axis + 3)]);
  return b.reshape(swapped, [group * perGroup, m / group, ...kernel]);
}

/**
 * dw of y = Conv(x, w): for every kernel position the matrix product of dy with the part of x that the position saw,
 * summed over batch and space; all positions in one product per group.
 */
function weightGradient(b: Builder, x: Value, gradient: Value, w: readonly number[], geometry: Geometry): Value {
  const { kernel, strides, dilations, before, after, group } = geometry;
  const [n, c] = b.dims(x);
  const [, m, ...output] = b.dims(gradient);
  const spatial = range(2, 2 + kernel.length);
  const padded = b.pad(x, [0, 0, ...before], [0, 0, ...after]);
  // Channels first, so that batch and space form the axis that is summed over.
  const channelsFirst = [1, 0, ...spatial];
  const source = b.transpose(padded, channelsFirst);
  const columns = n * elementCount(output);
  const views = kernelPositions(kernel).map((position) => {
    const starts = position.map((index, axis) => index * dilations[axis]);
    const ends = starts.map((start, axis) => start + (output[axis] - 1) * strides[axis] + 1);
    const steps = strides.every((stride) => stride === 1) ? undefined : strides;
    return b.reshape(b.slice(source, spatial, starts, ends, steps), [group, c / group, 1, columns]);
  });
  const patches = b.reshape(b.concat(views, 2), [group, (c / group) * views.length, columns]);
  const flat = b.reshape(b.transpose(gradient, channelsFirst), [group, m / group, columns]);
  if (group > 1) return b.reshape(b.matmul(flat, b.transposeMatrix(patches)), w);
  const [left, right] = [b.reshape(flat, [m, columns]), b.reshape(patches, [c * views.length, columns])];
  const product = b.op("Gemm", [left, right], [m, c * views.length], { transB: 1 });
  return sameDims(b.dims(product), w) ? product : b.reshape(product, w);
}

/** All index tuples of a kernel, last axis fastest. */
function kernelPositions(kernel: readonly number[]): number[][] {
  return kernel.reduce<number[][]>(
    (positions, length) => positions.flatMap((position) => range(0, length).map((index) => [...position, index])),
    [[]],
  );
}
