import { elementCount } from "../../ir/tensor.ts";
import { tensorType, Value } from "../../ir/value.ts";
import { type Builder, range } from "../builder.ts";
import { type GradientRule, type RuleCall, unsupported } from "../rule.ts";

export const poolingRules = {
  GlobalAveragePool: ({ node, build: b, gradient }) => [
    () => {
      const dims = b.dims(node.input(0));
      return b.expand(b.mul(gradient, 1 / elementCount(dims.slice(2))), dims);
    },
  ],
  GlobalMaxPool: ({ node, build: b, gradient }) => [
    () => {
      const x = node.input(0);
      const axes = range(2, b.dims(x).length);
      const isChosen = b.cast(b.binary("Equal", x, node.output(), "bool"), b.type(x));
      return b.mul(isChosen, b.div(gradient, b.reduce("ReduceSum", isChosen, axes)));
    },
  ],
  // An average over a box is an average along each axis in turn.
  AveragePool: (call) => [
    () => {
      const { node, build: b, gradient } = call;
      const dims = b.dims(node.input(0));
      return node
        .ints("kernel_shape")
        .reduce((value, _, axis) => b.contract(value, axis + 2, averagingMatrix(call, axis, dims[axis + 2])), gradient);
    },
  ],
  MaxPool: (call) => [
    () => {
      const { node, build: b, gradient } = call;
      if (node.int("storage_order", 0))
        throw unsupported(call, "MaxPool with column-major indices", "Use storage_order 0.");
      const dims = b.dims(node.input(0));
      const count = elementCount(b.dims(gradient));
      const indices = b.reshape(secondOutput(b, call), [count]);
      const flat = b.reshape(gradient, [count]);
      return b.reshape(scatterAdd(call, elementCount(dims), indices, flat), dims);
    },
  ],
} satisfies Record<string, GradientRule>;

/** Row o holds the weights with which output o averages the input elements of one axis. */
function averagingMatrix({ node, build: b }: RuleCall, axis: number, length: number): number[][] {
  const kernel = node.ints("kernel_shape")[axis];
  const rank = node.ints("kernel_shape").length;
  const stride = node.ints("strides", new Array(rank).fill(1))[axis];
  const dilation = node.ints("dilations", new Array(rank).fill(1))[axis];
  const count = b.dims(node.output())[axis + 2];
  const mode = node.string("auto_pad", "NOTSET");
  const total = Math.max(0, (count - 1) * stride + (kernel - 1) * dilation + 1 - length);
  const explicit = node.ints("pads", new Array(2 * rank).fill(0));
  let [before, after] = [explicit[axis], explicit[axis + rank]];
  if (mode === "SAME_UPPER") [before, after] = [Math.floor(total / 2), Math.ceil(total / 2)];
  if (mode === "SAME_LOWER") [before, after] = [Math.ceil(total / 2), Math.floor(total / 2)];
  if (mode === "VALID") [before, after] = [0, 0];
  const includesPads = node.int("count_include_pad", 0) === 1;
  return range(0, count).map((output) => {
    const positions = range(0, kernel).map((index) => output * stride - before + index * dilation);
    const inside = positions.filter((position) => position >= 0 && position < length);
    // Elements that ceil_mode adds beyond the padding never count.
    const counted = includesPads ? positions.filter((position) => position < length + after).length : inside.length;
    const row = new Array<number>(length).fill(0);
    for (const position of inside) row[position] = 1 / counted;
    return row;
  });
}

/** The indices that MaxPool returns as its second output, added where the node lacks it. */
function secondOutput(b: Builder, { node }: RuleCall): Value {
  const known = node.outputs[1];
  if (known) return known;
  const value = new Value(
    b.graph.claimName(`${node.output().name}_indices`),
    tensorType("int64", b.dims(node.output())),
  );
  if (node.outputs.length > 1) node.outputs.length = 1;
  node.addOutput(value);
  return value;
}

/** A vector of `length` zeros with `updates` added at `indices`; repeated indices add up. */
export function scatterAdd(call: RuleCall, length: number, indices: Value, updates: Value): Value {
  const { build: b } = call;
  requireScatter(call);
  const zeros = b.zeros([length], updates);
  return b.op("ScatterElements", [zeros, indices, updates], [length], { axis: 0, reduction: "add" });
}

/** Scattering with addition exists since opset 16. */
export function requireScatter(call: RuleCall): void {
  if (call.build.opset >= 16) return;
  throw unsupported(call, `${call.node.opType} below opset 16`, "Export the model with opset 16 or later.");
}
