import type { DataType } from "../../ir/data-type.ts";
import { outputDataType } from "../../ir/operator-types.ts";
import type { Value } from "../../ir/value.ts";
import { range } from "../builder.ts";
import { type GradientRule, type RuleCall, unsupported } from "../rule.ts";
import { positive } from "./shape.ts";

/** Smallest and largest number of each quantized type. */
const grids: Partial<Record<DataType, readonly [number, number]>> = {
  int8: [-128, 127],
  uint8: [0, 255],
  int16: [-32768, 32767],
  uint16: [0, 65535],
  int4: [-8, 7],
  uint4: [0, 15],
};

/**
 * Straight-through estimators (Bengio et al. 2013, arXiv 1308.3432). The gradient of an integer tensor that QuantizeLinear
 * made is taken with respect to the real numbers it stands for, so it passes DequantizeLinear and operators in between
 * unchanged. QuantizeLinear passes it on where the input rounds to a number of the grid, and stops it where it clips.
 * By the scale, the two together give the learned step size gradient (Esser et al. 2019, arXiv 1902.08153).
 */
export const quantizationRules = {
  QuantizeLinear: quantize,
  "com.microsoft.QuantizeLinear": quantize,
  DequantizeLinear: dequantize,
  "com.microsoft.DequantizeLinear": dequantize,
} satisfies Record<string, GradientRule>;

function dequantize(call: RuleCall): readonly ((() => Value) | null)[] {
  const { node, build: b, gradient } = call;
  // y = (q - zero) scale
  return [
    () => gradient,
    () => toScaleShape(call, b.mul(gradient, b.div(node.output(), alongAxis(call, node.input(1))))),
    null,
  ];
}

function quantize(call: RuleCall): readonly ((() => Value) | null)[] {
  const { node, build: b, gradient } = call;
  const x = node.input(0);
  // As a number: multiplying is several times faster than selecting.
  const inside = () => {
    const [lowest, highest] = gridOf(call);
    const scale = alongAxis(call, node.input(1));
    const zero = node.inputs[2] ? alongAxis(call, b.cast(node.inputs[2], b.type(x))) : b.scalar(0, x);
    // Half a step beyond the last number still rounds to it.
    const low = b.mul(scale, b.sub(b.scalar(lowest - 0.5, x), zero));
    const high = b.mul(scale, b.sub(b.scalar(highest + 0.5, x), zero));
    const isScalar = b.dims(low).length === 0;
    const clipped = isScalar ? b.op("Clip", [x, low, high], b.dims(x)) : b.binary("Min", b.binary("Max", x, low), high);
    return b.cast(b.binary("Equal", x, clipped, "bool"), b.type(x));
  };
  return [
    () => b.mul(gradient, inside()),
    // Within the range the quotient x / scale is differentiated, beyond it the grid number is constant.
    () => toScaleShape(call, b.neg(b.mul(b.mul(gradient, inside()), b.div(x, alongAxis(call, node.input(1)))))),
    null,
  ];
}

function gridOf(call: RuleCall): readonly [number, number] {
  const { node } = call;
  const type = node.inputs[2]?.dataType ?? node.output().dataType ?? outputDataType(node, 0);
  const grid = type ? grids[type] : undefined;
  if (!grid) throw unsupported(call, `quantization to ${type}`, "Use an integer type of 4, 8 or 16 bits.");
  return grid;
}

/** Reshapes per-channel parameters so that they broadcast along the quantization axis. */
function alongAxis(call: RuleCall, parameter: Value): Value {
  const { node, build: b } = call;
  const dims = b.dims(parameter);
  const rank = b.dims(node.output()).length;
  if (dims.length === 0) return parameter;
  if (dims.length === 1 && dims[0] === 1) return b.reshape(parameter, []);
  if (node.int("block_size", 0) > 0 || dims.length > 1) {
    throw unsupported(
      call,
      "blocked quantization",
      "Use per-tensor or per-channel parameters for values that are trained.",
    );
  }
  const axis = positive(node.int("axis", 1), rank);
  return b.reshape(
    parameter,
    range(0, rank).map((index) => (index === axis ? dims[0] : 1)),
  );
}

/** Sums a gradient over everything that shares a scale. */
function toScaleShape(call: RuleCall, gradient: Value): Value {
  const { node, build: b } = call;
  const scale = node.input(1);
  return b.reshape(b.unbroadcast(gradient, b.dims(alongAxis(call, scale))), b.dims(scale));
}
