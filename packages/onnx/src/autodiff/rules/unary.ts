import { isFloat } from "../../ir/data-type.ts";
import type { Value } from "../../ir/value.ts";
import type { Builder } from "../builder.ts";
import type { GradientRule, RuleCall } from "../rule.ts";

/** x, y = f(x) and the gradient g of y: gives the gradient of x. */
type Derivative = (build: Builder, g: Value, x: Value, y: Value, call: RuleCall) => Value;

function unary(derivative: Derivative): GradientRule {
  return (call) => {
    const { node, build, gradient } = call;
    return [() => derivative(build, gradient, node.input(0), node.output(), call)];
  };
}

/** Piecewise constant functions. */
const zero: GradientRule = () => [null];

/** The gradient goes through where the condition holds. */
const passWhere = (condition: "Greater" | "GreaterOrEqual", b: Builder, g: Value, x: Value, bound = 0) =>
  b.mask(b.binary(condition, x, b.scalar(bound, x), "bool"), g);

export const unaryRules = {
  Identity: unary((_, g) => g),
  Neg: unary((b, g) => b.neg(g)),
  Abs: unary((b, g, x) => b.mul(g, b.unary("Sign", x))),
  Sqrt: unary((b, g, _, y) => b.div(b.mul(g, 0.5), y)),
  // y' = -y^2
  Reciprocal: unary((b, g, _, y) => b.neg(b.mul(g, b.mul(y, y)))),
  Exp: unary((b, g, _, y) => b.mul(g, y)),
  Log: unary((b, g, x) => b.div(g, x)),
  Sin: unary((b, g, x) => b.mul(g, b.unary("Cos", x))),
  Cos: unary((b, g, x) => b.neg(b.mul(g, b.unary("Sin", x)))),
  // y' = 1 + y^2
  Tan: unary((b, g, _, y) => b.add(g, b.mul(g, b.mul(y, y)))),
  // y' = 1 / (1 + x^2)
  Atan: unary((b, g, x) => b.div(g, b.add(b.mul(x, x), b.scalar(1, x)))),
  // y' = 1 - y^2
  Tanh: unary((b, g, _, y) => b.sub(g, b.mul(g, b.mul(y, y)))),
  // y' = y (1 - y)
  Sigmoid: unary((b, g, _, y) => b.mul(g, b.sub(y, b.mul(y, y)))),
  // y' = 2 / sqrt(pi) exp(-x^2), the factor inside the exponent
  Erf: unary((b, g, x) => b.mul(g, b.unary("Exp", b.sub(b.scalar(Math.log(2 / Math.sqrt(Math.PI)), x), b.mul(x, x))))),
  Relu: unary((b, g, x) => passWhere("Greater", b, g, x)),
  LeakyRelu: unary((b, g, x, _, { node }) =>
    b.where(b.binary("Greater", x, b.scalar(0, x), "bool"), g, b.mul(g, node.float("alpha", 0.01))),
  ),
  // y' = 1 for x > 0, else y + alpha
  Elu: unary((b, g, x, y, { node }) =>
    b.where(b.binary("Greater", x, b.scalar(0, x), "bool"), g, b.mul(g, b.add(y, b.scalar(node.float("alpha", 1), y)))),
  ),
  // y' = sigmoid(x)
  Softplus: unary((b, g, x) => b.mul(g, b.unary("Sigmoid", x))),
  // y' = 1 / (1 + |x|)^2 = (1 - |y|)^2
  Softsign: unary((b, g, _, y) => {
    const rest = b.sub(b.scalar(1, y), b.unary("Abs", y));
    return b.mul(g, b.mul(rest, rest));
  }),
  // y = max(0, min(1, alpha x + beta))
  HardSigmoid: unary((b, g, _, y, { node }) => {
    const inside = b.op(
      "And",
      [b.binary("Greater", y, b.scalar(0, y), "bool"), b.binary("Less", y, b.scalar(1, y), "bool")],
      b.dims(y),
      {},
      "bool",
    );
    return b.mask(inside, b.mul(g, node.float("alpha", 0.2)));
  }),
  // y = x max(0, min(1, x / 6 + 1 / 2)); y' = x / 3 + 1 / 2 for |x| < 3, 1 above, 0 below
  HardSwish: unary((b, g, x) => {
    const slope = b.add(b.mul(x, 1 / 3), b.scalar(0.5, x));
    const above = b.binary("GreaterOrEqual", x, b.scalar(3, x), "bool");
    const inside = b.binary("Greater", x, b.scalar(-3, x), "bool");
    return b.mul(g, b.where(above, b.scalar(1, x), b.mask(inside, slope)));
  }),
  // y = x t with t = tanh(softplus(x)); y' = t + x (1 - t^2) sigmoid(x)
  Mish: unary((b, g, x) => {
    const t = b.unary("Tanh", b.unary("Softplus", x));
    const slope = b.mul(b.sub(x, b.mul(x, b.mul(t, t))), b.unary("Sigmoid", x));
    return b.mul(g, b.add(t, slope));
  }),
  Gelu: unary((b, g, x, _, { node }) =>
    node.string("approximate", "none") === "tanh" ? geluTanh(b, g, x) : geluErf(b, g, x),
  ),
  "com.microsoft.Gelu": unary((b, g, x) => geluErf(b, g, x)),
  // y = x s with s = sigmoid(alpha x); y' = s + alpha y (1 - s)
  "com.microsoft.QuickGelu": unary((b, g, x, y, { node }) => {
    const alpha = node.float("alpha", 1.702);
    const s = b.unary("Sigmoid", b.mul(x, alpha));
    return b.mul(g, b.add(s, b.mul(b.sub(y, b.mul(y, s)), alpha)));
  }),
  "com.microsoft.FastGelu": ({ node, build: b, gradient }) => {
    // The optional second input is a bias that is added first.
    const bias = node.inputs[1];
    const inner = () => geluTanh(b, gradient, bias ? b.add(node.input(0), bias) : node.input(0));
    return [inner, inner];
  },
  Dropout: unary((_, g) => g),
  Cast: unary((b, g, x) => {
    const type = b.type(x);
    return isFloat(type) ? b.cast(g, type) : g;
  }),
  Sign: zero,
  Floor: zero,
  Ceil: zero,
  // They read only the shape.
  RandomNormalLike: zero,
  RandomUniformLike: zero,
  Round: ({ gradient, options }) => [options.straightThroughRound ? () => gradient : null],
  // The gradient of a clipped element is zero; on a bound it is one.
  Clip: (call) => {
    const { node, build: b, gradient } = call;
    const x = node.input(0);
    const y = node.output();
    const outside = (comparison: "Less" | "Greater", index: number) => () =>
      b.mask(b.binary(comparison, x, node.input(index), "bool"), gradient);
    return [
      () => b.mask(b.binary("Equal", x, y, "bool"), gradient),
      node.inputs[1] ? outside("Less", 1) : null,
      node.inputs[2] ? outside("Greater", 2) : null,
    ];
  },
} satisfies Record<string, GradientRule>;

/** y = x P(x) with the normal distribution's P and density p: y' = P(x) + x p(x). */
function geluErf(b: Builder, g: Value, x: Value): Value {
  const half = b.scalar(0.5, x);
  const cumulative = b.add(b.mul(b.unary("Erf", b.mul(x, Math.SQRT1_2)), 0.5), half);
  const logNormalizer = b.scalar(-0.5 * Math.log(2 * Math.PI), x);
  const density = b.unary("Exp", b.sub(logNormalizer, b.mul(b.mul(x, x), 0.5)));
  return b.mul(g, b.add(cumulative, b.mul(x, density)));
}

/** y = x (1 + t) / 2 with t = tanh(c (x + k x^3)): y' = (1 + t) / 2 + x (1 - t^2) c (1 + 3 k x^2) / 2. */
function geluTanh(b: Builder, g: Value, x: Value): Value {
  const c = Math.sqrt(2 / Math.PI);
  const k = 0.044715;
  const square = b.mul(x, x);
  const one = b.scalar(1, x);
  const t = b.unary("Tanh", b.mul(b.mul(x, b.add(b.mul(square, k), one)), c));
  const outer = b.mul(b.add(t, one), 0.5);
  const inner = b.mul(b.add(b.mul(square, 3 * k), one), 0.5 * c);
  return b.mul(g, b.add(outer, b.mul(b.mul(x, b.sub(one, b.mul(t, t))), inner)));
}
