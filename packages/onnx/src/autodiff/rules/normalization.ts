import { floatAttribute } from "../../ir/node.ts";
import { elementCount } from "../../ir/tensor.ts";
import type { Value } from "../../ir/value.ts";
import { type Builder, range } from "../builder.ts";
import { type GradientRule, type RuleCall, unsupported } from "../rule.ts";
import { positive } from "./shape.ts";

/** Rows of a matrix brought to mean 0 and variance 1, and the reciprocal standard deviation of each, `[rows, 1]`. */
interface Normalized {
  readonly normal: Value;
  readonly reciprocalDeviation: Value;
}

export const normalizationRules = {
  // The groups of diffusion models come as InstanceNormalization of [N, groups, elements].
  InstanceNormalization: ({ node, build: b, gradient }) => {
    const x = node.input(0);
    const [n, c, ...spatial] = b.dims(x);
    const rows = [n * c, elementCount(spatial)];
    const affine = [1, c, ...spatial.map(() => 1)];
    const g = once(() => b.reshape(gradient, rows));
    const stats = once(() => normalize(b, b.reshape(x, rows), node.float("epsilon", 1e-5)));
    const perChannel = (value: Value) =>
      b.reshape(b.reduce("ReduceSum", b.reshape(value, [n, c, rows[1]]), [0, 2]), [c]);
    return [
      () => {
        const isOne = b.numbers(node.input(1))?.every((number) => number === 1);
        const scaled = isOne ? g() : b.reshape(b.mul(gradient, b.reshape(node.input(1), affine)), rows);
        return b.reshape(project(b, scaled, stats()), b.dims(x));
      },
      () => perChannel(b.mul(g(), stats().normal)),
      () => perChannel(g()),
    ];
  },
  LayerNormalization: (call) => layerNormalization(call),
  GroupNormalization: ({ node, build: b, gradient }) => {
    const x = node.input(0);
    const [n, c, ...spatial] = b.dims(x);
    const groups = node.int("num_groups");
    const rows = [n * groups, (c / groups) * elementCount(spatial)];
    // Scale and bias have one element per group in opset 18, one per channel since 21.
    const perGroup = b.dims(node.input(1))[0] === groups && b.opset < 21;
    const view = perGroup ? [n, groups, rows[1]] : [n, c, elementCount(spatial)];
    const stats = once(() => normalize(b, b.reshape(x, rows), node.float("epsilon", 1e-5)));
    const g = once(() => b.reshape(gradient, view));
    const total = (value: Value) => b.reshape(b.reduce("ReduceSum", value, [0, 2]), [view[1]]);
    return [
      () => {
        const scaled = b.mul(g(), b.reshape(node.input(1), [1, view[1], 1]));
        return b.reshape(project(b, b.reshape(scaled, rows), stats()), b.dims(x));
      },
      () => total(b.mul(g(), b.reshape(stats().normal, view))),
      () => total(g()),
    ];
  },
  // With the running statistics: y = (x - mean) / sqrt(var + epsilon) scale + bias
  BatchNormalization: (call) => {
    const { node, build: b, gradient } = call;
    if (node.int("training_mode", 0)) {
      throw unsupported(call, "BatchNormalization in training mode", "Export the model in inference mode.");
    }
    const rank = b.dims(gradient).length;
    const channels = b.dims(node.input(1));
    const column = (value: Value) => b.reshape(value, [...channels, ...range(2, rank).map(() => 1)]);
    const variance = () => b.add(node.input(4), b.scalar(node.float("epsilon", 1e-5), node.input(4)));
    const deviation = once(() => b.unary("Sqrt", variance()));
    const factor = once(() => b.div(node.input(1), deviation()));
    const axes = range(0, rank).filter((axis) => axis !== 1);
    const total = (value: Value) => b.reshape(b.reduce("ReduceSum", value, axes), channels);
    const centred = () => b.sub(node.input(0), column(node.input(3)));
    return [
      () => b.mul(gradient, column(factor())),
      () => total(b.mul(gradient, b.div(centred(), column(deviation())))),
      () => total(gradient),
      () => b.neg(b.mul(total(gradient), factor())),
      () => b.mul(total(b.mul(gradient, centred())), b.mul(b.div(factor(), variance()), -0.5)),
    ];
  },
  RMSNormalization: (call) => rootMeanSquare(call),
  SimplifiedLayerNormalization: (call) => rootMeanSquare(call),
  LpNormalization: (call) => {
    const { node, build: b, gradient } = call;
    if (node.int("p", 2) !== 2)
      throw unsupported(call, "LpNormalization with p = 1", "Write it with Abs, ReduceSum and Div.");
    const [x, y] = [node.input(0), node.output()];
    const axis = positive(node.int("axis", -1), b.dims(x).length);
    // y = x / |x|: dx = (g - y sum(g y)) / |x|
    const norm = () => b.unary("Sqrt", b.reduce("ReduceSumSquare", x, [axis]));
    return [() => b.div(b.sub(gradient, b.mul(y, b.reduce("ReduceSum", b.mul(gradient, y), [axis]))), norm())];
  },
} satisfies Record<string, GradientRule>;

/**
 * Normalizes the rows of a matrix. LayerNormalization computes and returns the statistics in one pass over memory, and
 * centres before it squares.
 */
function normalize(b: Builder, rows: Value, epsilon: number): Normalized {
  const [count, length] = b.dims(rows);
  const ones = b.ones(length, rows);
  const [normal, , reciprocalDeviation] = b.ops(
    "LayerNormalization",
    [rows, ones],
    [
      [count, length],
      [count, 1],
      [count, 1],
    ],
    { axis: 1, epsilon: floatAttribute(epsilon) },
  );
  return { normal, reciprocalDeviation };
}

/** Gradient of rows from the gradient g of their normal form n with reciprocal deviation r: r (g - mean(g) - n mean(g n)). */
function project(b: Builder, g: Value, { normal, reciprocalDeviation }: Normalized): Value {
  const meanGradient = b.reduce("ReduceMean", g, [1]);
  const meanProduct = b.reduce("ReduceMean", b.mul(g, normal), [1]);
  const rest = b.sub(b.sub(g, meanGradient), b.mul(normal, meanProduct));
  return b.mul(rest, reciprocalDeviation);
}

function layerNormalization({ node, build: b, gradient }: RuleCall) {
  const x = node.input(0);
  const dims = b.dims(x);
  const axis = positive(node.int("axis", -1), dims.length);
  const rows = [elementCount(dims.slice(0, axis)), elementCount(dims.slice(axis))];
  const affine = dims.slice(axis);
  const g = once(() => b.reshape(gradient, rows));
  const stats = once(() => normalize(b, b.reshape(x, rows), node.float("epsilon", 1e-5)));
  const total = (value: Value, shape: readonly number[]) =>
    b.unbroadcast(b.reshape(b.reduce("ReduceSum", value, [0]), affine), shape);
  const scale = () => b.reshape(b.expand(node.input(1), affine), [rows[1]]);
  return [
    () => b.reshape(project(b, b.mul(g(), scale()), stats()), dims),
    () => total(b.mul(g(), stats().normal), b.dims(node.input(1))),
    () => total(g(), b.dims(node.input(2))),
  ];
}

/** y = x r scale with r = 1 / sqrt(mean(x^2) + epsilon): dx = r (h - n mean(h n)) for h = g scale and n = x r. */
function rootMeanSquare({ node, build: b, gradient }: RuleCall) {
  const x = node.input(0);
  const dims = b.dims(x);
  const axes = range(positive(node.int("axis", -1), dims.length), dims.length);
  const stats = once(() => {
    const mean = b.reduce("ReduceMean", b.mul(x, x), axes);
    const r = b.unary("Reciprocal", b.unary("Sqrt", b.add(mean, b.scalar(node.float("epsilon", 1e-5), x))));
    return { normal: b.mul(x, r), r };
  });
  return [
    () => {
      const { normal, r } = stats();
      const h = b.mul(gradient, node.input(1));
      return b.mul(b.sub(h, b.mul(normal, b.reduce("ReduceMean", b.mul(h, normal), axes))), r);
    },
    () => b.mul(gradient, stats().normal),
  ];
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | null = null;
  return () => (made ??= { value: make() }).value;
}
