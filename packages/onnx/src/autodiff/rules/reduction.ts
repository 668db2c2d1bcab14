import { elementCount } from "../../ir/tensor.ts";
import type { Value } from "../../ir/value.ts";
import { type Builder, range } from "../builder.ts";
import type { GradientRule, RuleCall } from "../rule.ts";

/** What a reduction's derivative sees: g and y with the reduced axes kept as ones, the input, and the elements per result. */
interface Reduced {
  readonly b: Builder;
  readonly g: Value;
  readonly x: Value;
  readonly y: Value;
  readonly count: number;
  readonly axes: readonly number[];
}

function reduction(derivative: (reduced: Reduced) => Value): GradientRule {
  return ({ node, build: b, gradient }: RuleCall) => [
    () => {
      const x = node.input(0);
      const dims = b.dims(x);
      const given = b.axes(node, dims.length);
      if (!given && node.int("noop_with_empty_axes", 0)) {
        return derivative({ b, g: gradient, x, y: node.output(), count: 1, axes: [] });
      }
      const axes = given ?? range(0, dims.length);
      const kept = dims.map((dim, axis) => (axes.includes(axis) ? 1 : dim));
      const g = b.reshape(gradient, kept);
      const y = b.reshape(node.output(), kept);
      return derivative({ b, g, x, y, count: elementCount(axes.map((axis) => dims[axis])), axes });
    },
  ];
}

const extremum = reduction(({ b, g, x, y, axes }) => {
  const isChosen = b.cast(b.binary("Equal", x, y, "bool"), b.type(x));
  return b.mul(isChosen, b.div(g, b.reduce("ReduceSum", isChosen, axes)));
});

export const reductionRules = {
  ReduceSum: reduction(({ b, g, x }) => b.expand(g, b.dims(x))),
  ReduceMean: reduction(({ b, g, x, count }) => b.expand(b.mul(g, 1 / count), b.dims(x))),
  ReduceMax: extremum,
  ReduceMin: extremum,
  ReduceL1: reduction(({ b, g, x }) => b.mul(g, b.unary("Sign", x))),
  ReduceL2: reduction(({ b, g, x, y }) => b.mul(x, b.div(g, y))),
  ReduceSumSquare: reduction(({ b, g, x }) => b.mul(x, b.mul(g, 2))),
  ReduceLogSum: reduction(({ b, g, x, y }) => b.expand(b.div(g, b.unary("Exp", y)), b.dims(x))),
  ReduceLogSumExp: reduction(({ b, g, x, y }) => b.mul(g, b.unary("Exp", b.sub(x, y)))),
  // Undefined where an element is zero.
  ReduceProd: reduction(({ b, g, x, y }) => b.div(b.mul(g, y), x)),
} satisfies Record<string, GradientRule>;
