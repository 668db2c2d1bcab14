import type { Node } from "../../ir/node.ts";
import type { Value } from "../../ir/value.ts";
import { type Builder, isOperator } from "../builder.ts";
import type { GradientRule, RuleCall } from "../rule.ts";

/** Rules of elementwise operators with several inputs. Results may have the broadcast shape; the caller sums. */
export const binaryRules = {
  Add: ({ gradient }) => [() => gradient, () => gradient],
  Sub: ({ build, gradient }) => [() => gradient, () => build.neg(gradient)],
  Mul: (call) => silu(call) ?? geluErf(call) ?? multiplication(call),
  Div: ({ node, build: b, gradient }) => [
    () => b.div(gradient, node.input(1)),
    // d(a / b) / db = -y / b
    () => b.neg(b.div(b.mul(gradient, node.output()), node.input(1))),
  ],
  Pow: ({ node, build: b, gradient }) => {
    const [base, exponent] = [node.input(0), node.input(1)];
    const power = b.numbers(exponent);
    return [
      () => {
        if (power?.length === 1) return b.mul(gradient, constantPowerSlope(b, base, power[0], node));
        const e = b.cast(exponent, b.type(base));
        return b.mul(gradient, b.mul(e, b.binary("Pow", base, b.sub(e, b.scalar(1, e)))));
      },
      () => {
        // The logarithm exists only for positive bases; elsewhere the gradient is zero, as in PyTorch for base 0.
        const isPositive = b.binary("Greater", base, b.scalar(0, base), "bool");
        const log = b.unary("Log", b.where(isPositive, base, b.scalar(1, base)));
        return b.mul(gradient, b.mul(node.output(), log));
      },
    ];
  },
  Sum: ({ node, gradient }) => node.inputs.map(() => () => gradient),
  Mean: ({ node, build, gradient }) => node.inputs.map(() => () => build.mul(gradient, 1 / node.inputs.length)),
  Max: (call) => extremum(call),
  Min: (call) => extremum(call),
  Where: ({ node, build: b, gradient }) => [
    null,
    () => b.where(node.input(0), gradient, b.scalar(0, gradient)),
    () => b.where(node.input(0), b.scalar(0, gradient), gradient),
  ],
  PRelu: ({ node, build: b, gradient }) => {
    const [x, slope] = [node.input(0), node.input(1)];
    const isNegative = b.binary("Less", x, b.scalar(0, x), "bool");
    return [() => b.where(isNegative, b.mul(gradient, slope), gradient), () => b.mask(isNegative, b.mul(gradient, x))];
  },
} satisfies Record<string, GradientRule>;

function multiplication({ node, build, gradient }: RuleCall) {
  const [a, b] = [node.input(0), node.input(1)];
  return [() => build.mul(gradient, b), () => build.mul(gradient, a)];
}

/** y = x s with s = sigmoid(x): y' = s + y (1 - s), all of it credited to x, none to s. */
function silu({ node, build: b, gradient }: RuleCall) {
  for (const [position, other] of [
    [0, 1],
    [1, 0],
  ]) {
    const x = node.input(position);
    const s = node.input(other);
    if (!isOperator(s, "Sigmoid") || s.producer!.input(0) !== x) continue;
    const y = node.output();
    const whole = () => b.mul(gradient, b.add(b.sub(y, b.mul(y, s)), s));
    return position === 0 ? [whole, null] : [null, whole];
  }
  return null;
}

/**
 * y = x c with c = erf(x / k) + 1, as exporters write GELU: y' = c + x 2 / (k sqrt(pi)) exp(-(x / k)^2), all of it
 * credited to x, none to c.
 */
function geluErf({ node, build: b, gradient }: RuleCall) {
  for (const [position, other] of [
    [0, 1],
    [1, 0],
  ]) {
    const x = node.input(position);
    const c = node.input(other);
    const scaled = isOperator(c, "Add") ? scaledArgument(b, c.producer!, x) : null;
    if (!scaled) continue;
    const { u, factor } = scaled;
    const logFactor = b.scalar(Math.log((2 * factor) / Math.sqrt(Math.PI)), x);
    const slope = () => b.mul(x, b.unary("Exp", b.sub(logFactor, b.mul(u, u))));
    const whole = () => b.mul(gradient, b.add(slope(), c));
    return position === 0 ? [whole, null] : [null, whole];
  }
  return null;
}

/** For erf(u) + 1 with u = factor x: u and the positive factor. */
function scaledArgument(b: Builder, add: Node, x: Value): { u: Value; factor: number } | null {
  const erf = add.inputs.find((value) => isOperator(value, "Erf"));
  const one = add.inputs.find((value) => value !== erf);
  if (!erf || b.numbers(one)?.every((number) => number === 1) !== true || b.dims(one!).length > b.dims(erf).length)
    return null;
  const u = erf.producer!.input(0);
  if (!isOperator(u, "Div") && !isOperator(u, "Mul")) return null;
  const [argument, scale] = [u.producer!.input(0), u.producer!.input(1)];
  const numbers = b.numbers(scale);
  if (argument !== x || numbers?.length !== 1 || !(numbers[0] > 0) || b.dims(scale).length > 1) return null;
  return { u, factor: u.producer!.opType === "Div" ? 1 / numbers[0] : numbers[0] };
}

/** d(x^p) / dx for a constant p. */
function constantPowerSlope(b: Builder, x: Value, power: number, node: Node): Value {
  if (power === 2) return b.mul(x, 2);
  if (power === 1) return b.full(1, b.dims(x), x);
  if (power === 0) return b.zeros(b.dims(x), x);
  if (power === 0.5) return b.div(b.scalar(0.5, x), node.output());
  if (power === 3) return b.mul(b.mul(x, x), 3);
  return b.mul(b.binary("Pow", x, b.scalar(power - 1, x)), power);
}

/** The gradient goes to the inputs that equal the output, in equal shares where there are several. */
function extremum({ node, build: b, gradient }: RuleCall) {
  const y = node.output();
  if (node.inputs.length === 1) return [() => gradient];
  const isChosen = node.inputs.map((value) => b.cast(b.binary("Equal", value!, y, "bool"), b.type(y)));
  const share = b.div(
    gradient,
    isChosen.reduce((sum, mask) => b.add(sum, mask)),
  );
  return isChosen.map((mask) => () => b.mul(share, mask));
}
