import { elementCount } from "../../ir/tensor.ts";
import type { Value } from "../../ir/value.ts";
import { type Builder, sameDims } from "../builder.ts";
import { type Gradient, type GradientRule, type RuleCall, unsupported } from "../rule.ts";
import { requireScatter } from "./pooling.ts";
import { positive } from "./shape.ts";

export const indexingRules = {
  Gather: (call) => [() => gatherGradient(call), null],
  GatherElements: (call) => [
    () => {
      requireScatter(call);
      const { node, build: b, gradient } = call;
      const dims = b.dims(node.input(0));
      const attributes = { axis: node.int("axis", 0), reduction: "add" };
      return b.op("ScatterElements", [b.zeros(dims, gradient), node.input(1), gradient], dims, attributes);
    },
    null,
  ],
  GatherND: (call) => [
    () => {
      requireScatter(call);
      const { node, build: b, gradient } = call;
      if (node.int("batch_dims", 0)) {
        throw unsupported(call, "GatherND with batch_dims", "Put the batch index into the indices.");
      }
      const dims = b.dims(node.input(0));
      return b.op("ScatterND", [b.zeros(dims, gradient), node.input(1), gradient], dims, { reduction: "add" });
    },
    null,
  ],
  // Repeated indices without a reduction have no defined result, so none need be handled.
  ScatterND: (call) => {
    const { node, build: b, gradient } = call;
    const isAdded = requireReduction(call);
    const update = b.dims(node.input(2));
    return [
      () =>
        isAdded ? gradient : b.op("ScatterND", [gradient, node.input(1), b.zeros(update, gradient)], b.dims(gradient)),
      null,
      () => b.op("GatherND", [gradient, node.input(1)], update),
    ];
  },
  ScatterElements: (call) => {
    const { node, build: b, gradient } = call;
    const isAdded = requireReduction(call);
    const update = b.dims(node.input(2));
    const axis = node.int("axis", 0);
    return [
      () =>
        isAdded
          ? gradient
          : b.op("ScatterElements", [gradient, node.input(1), b.zeros(update, gradient)], b.dims(gradient), { axis }),
      null,
      () => b.op("GatherElements", [gradient, node.input(1)], update, { axis }),
    ];
  },
} satisfies Record<string, GradientRule>;

/** Whether updates are added; false where they replace. Throws for other reductions. */
function requireReduction(call: RuleCall): boolean {
  const reduction = call.node.string("reduction", "none");
  if (reduction !== "none" && reduction !== "add") {
    throw unsupported(call, `${call.node.opType} with reduction ${reduction}`, 'Use the reduction "none" or "add".');
  }
  return reduction === "add";
}

function gatherGradient(call: RuleCall): Gradient {
  const { node, build: b, gradient } = call;
  const dims = b.dims(node.input(0));
  const axis = positive(node.int("axis", 0), dims.length);
  const indices = node.input(1);
  const shape = b.dims(indices);
  const known = b.numbers(indices);
  if (known?.length === 1) {
    const start = positive(known[0], dims[axis]);
    return {
      kind: "slice",
      value: b.reshape(
        gradient,
        dims.map((dim, index) => (index === axis ? 1 : dim)),
      ),
      axis,
      start,
    };
  }
  // [before, indices, behind] -> [indices, before x behind]: rows to add up by index
  const count = elementCount(shape);
  const [before, behind] = [elementCount(dims.slice(0, axis)), elementCount(dims.slice(axis + 1))];
  const rows = b.reshape(b.transpose(b.reshape(gradient, [before, count, behind]), [1, 0, 2]), [
    count,
    before * behind,
  ]);
  const table = [dims[axis], before * behind];
  const restore = (value: Value) => {
    const turned = b.transpose(b.reshape(value, [dims[axis], before, behind]), [1, 0, 2]);
    return sameDims(b.dims(turned), dims) ? turned : b.reshape(turned, dims);
  };
  if (b.opset < 16) {
    const oneHot = oneHotRows(b, call, count, dims[axis]);
    return restore(b.op("Gemm", [oneHot, rows], table, { transA: 1 }));
  }
  const column = b.op("Reshape", [indices, b.ints([count, 1])], [count, 1], {}, b.type(indices));
  const attributes = { reduction: "add" };
  const position = b.type(indices) === "int64" ? column : b.cast(column, "int64");
  return restore(b.op("ScatterND", [b.zeros(table, gradient), position, rows], table, attributes));
}

/** `[count, depth]`: row i has a one at index i's place. Scattering with addition exists only since opset 16. */
function oneHotRows(b: Builder, { node, gradient }: RuleCall, count: number, depth: number) {
  const flat = b.op("Reshape", [node.input(1), b.ints([count])], [count], {}, b.type(node.input(1)));
  const values = b.floats([2], [0, 1], gradient);
  return b.op("OneHot", [flat, b.ints([depth]), values], [count, depth], { axis: -1 }, b.type(gradient));
}
