import type { Value } from "../../ir/value.ts";
import { type Builder, broadcast, range } from "../builder.ts";
import { type Gradient, type GradientRule, product, type RuleCall, unsupported } from "../rule.ts";

export const matrixRules = {
  MatMul: ({ node, build, gradient }) => matmulGradients(build, node.input(0), node.input(1), gradient),
  "com.microsoft.FusedMatMul": (call) => {
    const { node, build: b, gradient } = call;
    if (node.int("transBatchA", 0) || node.int("transBatchB", 0)) {
      throw unsupported(call, "FusedMatMul with transBatchA or transBatchB", "Use MatMul and Transpose.");
    }
    const alpha = node.float("alpha", 1);
    const turn = (value: Value, flag: string) => (node.int(flag, 0) ? b.transposeMatrix(value) : value);
    const [a, c] = [turn(node.input(0), "transA"), turn(node.input(1), "transB")];
    const scaled = b.mul(gradient, alpha);
    return [
      () => turn(b.unbroadcast(b.matmul(scaled, b.transposeMatrix(c)), b.dims(a)), "transA"),
      () => turn(b.unbroadcast(b.matmul(b.transposeMatrix(a), scaled), b.dims(c)), "transB"),
    ];
  },
  // Y = alpha op(A) op(B) + beta C
  Gemm: ({ node, build, gradient }) => {
    const [a, b] = [node.input(0), node.input(1)];
    const [transA, transB] = [node.int("transA", 0) === 1, node.int("transB", 0) === 1];
    const scale = node.float("alpha", 1);
    return [
      () =>
        transA
          ? product(b, gradient, { transposeLeft: transB, transposeRight: true, scale })
          : product(gradient, b, { transposeRight: !transB, scale }),
      () =>
        transB
          ? product(gradient, a, { transposeLeft: true, transposeRight: transA, scale })
          : product(a, gradient, { transposeLeft: !transA, scale }),
      () => build.mul(gradient, node.float("beta", 1)),
    ];
  },
  Einsum: (call) => einsumGradients(call),
} satisfies Record<string, GradientRule>;

function matmulGradients(build: Builder, a: Value, b: Value, gradient: Value): (() => Gradient)[] {
  const [left, right] = [build.dims(a), build.dims(b)];
  // A matrix or batch times one matrix is one product of flattened matrices.
  if (right.length === 2 && left.length >= 2) {
    const flat = (value: Value, columns: number) => build.reshape(value, [rowsOf(build.dims(value)), columns]);
    return [
      () => product(flat(gradient, right[1]), b, { transposeRight: true }),
      () => product(flat(a, right[0]), flat(gradient, right[1]), { transposeLeft: true }),
    ];
  }
  // Vectors become matrices of one row or one column.
  const a2 = left.length === 1 ? build.reshape(a, [1, left[0]]) : a;
  const b2 = right.length === 1 ? build.reshape(b, [right[0], 1]) : b;
  const [leftDims, rightDims] = [build.dims(a2), build.dims(b2)];
  const batch = broadcast(leftDims.slice(0, -2), rightDims.slice(0, -2));
  const g = build.reshape(gradient, [...batch, leftDims[leftDims.length - 2], rightDims[rightDims.length - 1]]);
  return [
    () => build.reshape(build.unbroadcast(build.matmul(g, build.transposeMatrix(b2)), leftDims), left),
    () => build.reshape(build.unbroadcast(build.matmul(build.transposeMatrix(a2), g), rightDims), right),
  ];
}

function rowsOf(dims: readonly number[]): number {
  return dims.slice(0, -1).reduce((rows, dim) => rows * dim, 1);
}

/** The gradient of an operand is the Einsum of the output's gradient with the other operands. */
function einsumGradients(call: RuleCall) {
  const { node, build, gradient } = call;
  const { operands, output } = einsumTerms(call);
  const repeated = operands.find((term) => new Set(term).size < term.length);
  if (repeated !== undefined) {
    throw unsupported(call, `Einsum with the diagonal "${repeated}"`, "Write the diagonal with Gather or a mask.");
  }
  return operands.map((term, position) => () => {
    const others = operands.flatMap((other, index) =>
      index === position ? [] : [{ term: other, value: node.input(index) }],
    );
    const known = new Set([...output, ...others.flatMap(({ term: other }) => [...other])]);
    const dims = build.dims(node.input(position));
    // Letters of this operand alone were summed over: the gradient does not vary along them.
    const reachable = [...term].filter((letter) => known.has(letter)).join("");
    const equation = `${[output, ...others.map((other) => other.term)].join(",")}->${reachable}`;
    const inputs = [gradient, ...others.map(({ value }) => value)];
    const kept = range(0, term.length).filter((axis) => known.has(term[axis]));
    const lengths = kept.map((axis) => letterLength(build, term[axis], output, gradient, others) ?? dims[axis]);
    const result = build.op("Einsum", inputs, lengths, { equation });
    const aligned = build.reshape(
      result,
      term.split("").map((letter) => (known.has(letter) ? lengths[reachable.indexOf(letter)] : 1)),
    );
    return build.expand(
      build.unbroadcast(
        aligned,
        build.dims(aligned).map((dim, axis) => (dims[axis] === 1 ? 1 : dim)),
      ),
      dims,
    );
  });
}

function letterLength(
  build: Builder,
  letter: string,
  output: string,
  gradient: Value,
  others: readonly { term: string; value: Value }[],
): number | null {
  const lengths = [{ term: output, value: gradient }, ...others]
    .filter(({ term }) => term.includes(letter))
    .map(({ term, value }) => build.dims(value)[term.indexOf(letter)]);
  return lengths.length > 0 ? Math.max(...lengths) : null;
}

/** The terms of the equation, with an ellipsis spelled out in upper-case letters that the equation does not use. */
function einsumTerms(call: RuleCall): { operands: string[]; output: string } {
  const { node, build } = call;
  const equation = node.string("equation").replaceAll(" ", "");
  const [left, right] = equation.split("->");
  const terms = left.split(",");
  const free = [..."ZYXWVUTSRQPONMLKJIHGFEDCBA"].filter((letter) => !equation.includes(letter));
  const ranks = terms.map((term, index) =>
    term.includes("...") ? build.dims(node.input(index)).length - (term.length - 3) : 0,
  );
  const longest = Math.max(0, ...ranks);
  const letters = free.slice(0, longest).join("");
  const operands = terms.map((term, index) => term.replace("...", letters.slice(longest - ranks[index])));
  if (right !== undefined) return { operands, output: right.replace("...", letters) };
  const all = left.replaceAll(/[.,]/g, "");
  const once = [...new Set(all)].filter((letter) => all.indexOf(letter) === all.lastIndexOf(letter)).sort();
  return { operands, output: (left.includes("...") ? letters : "") + once.join("") };
}
