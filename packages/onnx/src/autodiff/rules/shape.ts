import type { Value } from "../../ir/value.ts";
import { type Builder, range } from "../builder.ts";
import { type Gradient, type GradientRule, type RuleCall, unsupported } from "../rule.ts";

/** Back to the shape of the input. */
const restoreShape: GradientRule = ({ node, build, gradient }) => [
  () => build.reshape(gradient, build.dims(node.input(0))),
];

/** Rules of operators that move elements without computing. */
export const shapeRules = {
  Reshape: restoreShape,
  Flatten: restoreShape,
  Squeeze: restoreShape,
  Unsqueeze: restoreShape,
  Expand: ({ gradient }) => [() => gradient],
  Transpose: ({ node, build, gradient }) => [
    () => {
      const rank = build.dims(gradient).length;
      const perm = node.ints("perm", range(0, rank).reverse());
      return build.transpose(
        gradient,
        range(0, rank).map((axis) => perm.indexOf(axis)),
      );
    },
  ],
  Concat: (call) => {
    const { node, build, gradient } = call;
    const axis = positive(node.int("axis"), build.dims(gradient).length);
    const lengths = node.inputs.map((value) => build.dims(value!)[axis]);
    let pieces: Value[] | null = null;
    const isWhole = call.needs.every((need) => need);
    return node.inputs.map((_, index) => () => {
      const start = lengths.slice(0, index).reduce((sum, length) => sum + length, 0);
      if (!isWhole) return build.slice(gradient, [axis], [start], [start + lengths[index]]);
      pieces ??= build.split(gradient, axis, lengths);
      return pieces[index];
    });
  },
  Split: ({ node, build, gradients }) => [
    () => {
      const axis = positive(node.int("axis", 0), build.dims(node.input(0)).length);
      const reference = gradients.find((value) => value !== null)!;
      const pieces = node.outputs.map((output, index) => {
        const dims = output ? build.dims(output) : splitDims(build, node.input(0), axis, node.outputs.length, index);
        return gradients[index] ?? build.zeros(dims, reference);
      });
      return build.concat(pieces, axis);
    },
  ],
  Slice: (call) => [() => sliceGradient(call)],
  Tile: ({ node, build, gradient }) => [
    () => {
      const dims = build.dims(node.input(0));
      const repeats = build.dims(gradient).map((dim, axis) => (dims[axis] === 0 ? 1 : dim / dims[axis]));
      const split = build.reshape(
        gradient,
        dims.flatMap((dim, axis) => [repeats[axis], dim]),
      );
      const axes = range(0, dims.length).filter((axis) => repeats[axis] !== 1);
      return build.reshape(
        build.reduce(
          "ReduceSum",
          split,
          axes.map((axis) => 2 * axis),
        ),
        dims,
      );
    },
  ],
  DepthToSpace: (call) => [() => depthToSpaceGradient(call)],
  SpaceToDepth: ({ node, build: b, gradient }) => [
    () => {
      // Forward: [N, C, H', k, W', k] -> [N, k, k, C, H', W']
      const [n, c, height, width] = b.dims(node.input(0));
      const k = node.int("blocksize");
      const blocks = b.reshape(gradient, [n, k, k, c, height / k, width / k]);
      return b.reshape(b.transpose(blocks, [0, 3, 4, 1, 5, 2]), [n, c, height, width]);
    },
  ],
  Trilu: ({ node, build: b, gradient }) => [
    () => b.op("Trilu", [gradient, node.inputs[1] ?? null], b.dims(gradient), { upper: node.int("upper", 1) }),
  ],
  // Each element goes into all sums at and after it: sum from the other end.
  CumSum: ({ node, build: b, gradient }) => [
    () =>
      b.op("CumSum", [gradient, node.input(1)], b.dims(gradient), {
        exclusive: node.int("exclusive", 0),
        reverse: 1 - node.int("reverse", 0),
      }),
  ],
} satisfies Record<string, GradientRule>;

export function positive(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}

function splitDims(build: Builder, input: Value, axis: number, count: number, index: number): number[] {
  const dims = [...build.dims(input)];
  const lengths = build.numbers(input.consumers.find((node) => node.opType === "Split")?.inputs[1]);
  const chunk = Math.ceil(dims[axis] / count);
  dims[axis] = lengths?.[index] ?? Math.min(chunk, dims[axis] - chunk * index);
  return dims;
}

function sliceGradient(call: RuleCall): Gradient {
  const { node, build, gradient } = call;
  const dims = build.dims(node.input(0));
  const starts = build.requiredNumbers(node, 1);
  const axes = (node.inputs[3] ? build.requiredNumbers(node, 3) : range(0, starts.length)).map((axis) =>
    positive(axis, dims.length),
  );
  const steps = node.inputs[4] ? build.requiredNumbers(node, 4) : starts.map(() => 1);
  const before = dims.map(() => 0);
  const after = dims.map(() => 0);
  let value = gradient;
  let cut: { axis: number; start: number } | null = null;
  let cuts = 0;
  axes.forEach((axis, index) => {
    const length = dims[axis];
    const step = steps[index];
    const count = build.dims(gradient)[axis];
    const lowest = step > 0 ? 0 : -1;
    const given = starts[index] < 0 ? starts[index] + length : starts[index];
    const first = Math.min(Math.max(given, step > 0 ? lowest : 0), step > 0 ? length : length - 1);
    if (step < 0) value = build.flip(value, [axis]);
    const spacing = Math.abs(step);
    if (spacing > 1 && count > 1) value = spread(build, value, axis, spacing);
    const span = count === 0 ? 0 : (count - 1) * spacing + 1;
    before[axis] = step > 0 ? first : first - span + 1;
    after[axis] = length - before[axis] - span;
    if (span === length) return;
    cut = { axis, start: before[axis] };
    cuts++;
  });
  if (cuts === 1 && cut) return { kind: "slice", value, ...(cut as { axis: number; start: number }) };
  return build.pad(value, before, after);
}

/** Puts `spacing - 1` zeros between the elements of an axis: `n` become `(n - 1) spacing + 1`. */
export function spread(build: Builder, value: Value, axis: number, spacing: number): Value {
  const dims = build.dims(value);
  const split = build.reshape(value, [...dims.slice(0, axis + 1), 1, ...dims.slice(axis + 1)]);
  const none = [...dims, 1].map(() => 0);
  const padded = build.pad(
    split,
    none,
    none.map((_, index) => (index === axis + 1 ? spacing - 1 : 0)),
  );
  const joined = build.reshape(
    padded,
    dims.map((dim, index) => (index === axis ? dim * spacing : dim)),
  );
  return build.slice(joined, [axis], [0], [(dims[axis] - 1) * spacing + 1]);
}

function depthToSpaceGradient(call: RuleCall): Value {
  const { node, build: b, gradient } = call;
  const [n, channels, height, width] = b.dims(node.input(0));
  const k = node.int("blocksize");
  const c = channels / (k * k);
  const mode = node.string("mode", "DCR");
  if (mode !== "DCR" && mode !== "CRD") throw unsupported(call, `DepthToSpace in mode ${mode}`, "Use DCR or CRD.");
  // Forward: DCR [N, k, k, C, H, W], CRD [N, C, k, k, H, W] -> [N, C, H, k, W, k]
  const blocks = b.reshape(gradient, [n, c, height, k, width, k]);
  return b.reshape(b.transpose(blocks, mode === "DCR" ? [0, 3, 5, 1, 2, 4] : [0, 1, 3, 5, 2, 4]), [
    n,
    channels,
    height,
    width,
  ]);
}
