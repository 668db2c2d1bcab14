import type { Value } from "../../ir/value.ts";
import { isOperator } from "../builder.ts";
import type { GradientRule, RuleCall } from "../rule.ts";
import { positive } from "./shape.ts";

export const softmaxRules = {
  // dx = y (g - sum(g y))
  Softmax: (call) => [
    () => {
      const { node, build: b, gradient } = call;
      const y = node.output();
      const projection = attentionProjection(call) ?? b.reduce("ReduceSum", b.mul(gradient, y), axesOf(call));
      return b.mul(y, b.sub(gradient, projection));
    },
  ],
  // dx = g - exp(y) sum(g)
  LogSoftmax: (call) => [
    () => {
      const { node, build: b, gradient } = call;
      return b.sub(gradient, b.mul(b.unary("Exp", node.output()), b.reduce("ReduceSum", gradient, axesOf(call))));
    },
  ],
} satisfies Record<string, GradientRule>;

function axesOf({ node, build }: RuleCall): number[] {
  const rank = build.dims(node.output()).length;
  return [positive(node.int("axis", -1), rank)];
}

/**
 * Where the probabilities P only weight values, O = P V, the row sums of dP P equal those of dO O, which are shorter
 * than P's rows. (Dao et al. 2022, "FlashAttention", appendix B.)
 */
function attentionProjection({ node, build: b, gradientOf, readersOf }: RuleCall): Value | null {
  const y = node.output();
  const rank = b.dims(y).length;
  const [use, ...others] = readersOf(y);
  if (positive(node.int("axis", -1), rank) !== rank - 1 || !use || others.length > 0 || use.index !== 0) return null;
  if (b.graph.outputs.includes(y) || !isOperator(use.node.outputs[0], "MatMul")) return null;
  const output = use.node.output();
  const upstream = gradientOf(output);
  const dims = b.dims(output);
  if (!upstream || dims.length !== rank || dims[rank - 1] >= b.dims(y)[rank - 1]) return null;
  return b.dims(y).every((dim, axis) => axis === rank - 1 || dim === dims[axis])
    ? b.reduce("ReduceSum", b.mul(upstream, output), [rank - 1])
    : null;
}
