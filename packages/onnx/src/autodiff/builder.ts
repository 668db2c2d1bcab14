import { InputError } from "@quad-lora/base";
import type { DataType } from "../ir/data-type.ts";
import type { Model } from "../ir/model.ts";
import type { AttributeInput } from "../ir/node.ts";
import { elementCount } from "../ir/tensor.ts";
import { tensorType, type Value } from "../ir/value.ts";
import { type Dims, TypedGraph } from "./typed-graph.ts";

type Attributes = Readonly<Record<string, AttributeInput>>;

const int64Min = -(2n ** 63n);

/**
 * Adds operators to a graph and keeps the concrete type and shape of every value it makes, so that rules can ask for
 * shapes anywhere. Operators take the form of the model's opset (13 or later). What does nothing is not added:
 * a Reshape to the same shape, a Transpose that moves nothing or undoes another.
 */
export class Builder extends TypedGraph {
  constructor(model: Model) {
    super(model);
    if (this.opset < 13) {
      throw new InputError({
        what: "graphs of this operator set cannot be differentiated",
        file: model.file,
        expected: "opset 13 or later",
        got: `opset ${this.opset}`,
        fix: "Export the model again with a newer opset.",
      });
    }
  }

  /** A tensor of one number, made at run time so that the model does not hold it. */
  full(value: number, dims: Dims, like: Value): Value {
    return this.expand(this.scalar(value, like), dims);
  }

  zeros(dims: Dims, like: Value): Value {
    return this.full(0, dims, like);
  }

  /** Adds a node with one output of the given shape; its type is that of the first input unless given. */
  op(
    opType: string,
    inputs: readonly (Value | null)[],
    dims: Dims,
    attributes: Attributes = {},
    type?: DataType,
  ): Value {
    return this.ops(opType, inputs, [dims], attributes, type)[0];
  }

  /** Adds a node with one output per shape. */
  ops(
    opType: string,
    inputs: readonly (Value | null)[],
    shapes: readonly Dims[],
    attributes: Attributes = {},
    type: DataType = this.type(inputs[0]!),
    domain = "",
  ): Value[] {
    const node = this.graph.addNode(opType, inputs, {
      // Runtimes refuse two nodes of one name.
      name: this.graph.claimName(`${this.scope}/${opType}`),
      attributes,
      domain,
      outputCount: shapes.length,
    });
    return shapes.map((dims, index) => {
      const value = node.output(index);
      value.type = tensorType(type, dims);
      return value;
    });
  }

  unary(opType: string, a: Value): Value {
    return this.op(opType, [a], this.dims(a));
  }

  binary(opType: string, a: Value, b: Value, type?: DataType): Value {
    return this.op(opType, [a, b], broadcast(this.dims(a), this.dims(b)), {}, type);
  }

  add(a: Value, b: Value): Value {
    return this.binary("Add", a, b);
  }

  sub(a: Value, b: Value): Value {
    return this.binary("Sub", a, b);
  }

  mul(a: Value, b: Value | number): Value {
    if (b === 1) return a;
    return this.binary("Mul", a, typeof b === "number" ? this.scalar(b, a) : b);
  }

  div(a: Value, b: Value): Value {
    return this.binary("Div", a, b);
  }

  neg(a: Value): Value {
    return this.unary("Neg", a);
  }

  /** Elements of `a` where the condition holds, else zero. */
  mask(condition: Value, a: Value): Value {
    return this.where(condition, a, this.scalar(0, a));
  }

  where(condition: Value, a: Value, b: Value): Value {
    const dims = broadcast(this.dims(condition), broadcast(this.dims(a), this.dims(b)));
    return this.op("Where", [condition, a, b], dims, {}, this.type(a));
  }

  cast(a: Value, type: DataType): Value {
    if (this.type(a) === type) return a;
    const codes: Partial<Record<DataType, number>> = { float32: 1, int64: 7, float16: 10, float64: 11, bfloat16: 16 };
    return this.op("Cast", [a], this.dims(a), { to: codes[type]! }, type);
  }

  reshape(a: Value, dims: Dims): Value {
    if (sameDims(this.dims(a), dims)) return a;
    const source = isOperator(a, "Reshape") ? a.producer!.input(0) : a;
    if (sameDims(this.dims(source), dims)) return source;
    // A dimension of 0 would otherwise mean "as in the input".
    const attributes = dims.includes(0) ? { allowzero: 1 } : undefined;
    return this.op("Reshape", [source, this.ints(dims)], dims, attributes);
  }

  transpose(a: Value, perm: readonly number[]): Value {
    if (perm.every((axis, index) => axis === index)) return a;
    if (isOperator(a, "Transpose")) {
      const inner = a.producer!;
      const first = inner.ints("perm", reversed(perm.length));
      const whole = perm.map((axis) => first[axis]);
      // Only what cancels: otherwise the transposed value exists already and is the better start.
      if (whole.every((axis, index) => axis === index)) return inner.input(0);
    }
    const dims = this.dims(a);
    return this.op(
      "Transpose",
      [a],
      perm.map((axis) => dims[axis]),
      { perm },
    );
  }

  /** Swaps the last two axes. */
  transposeMatrix(a: Value): Value {
    const rank = this.dims(a).length;
    const perm = Array.from({ length: rank }, (_, axis) => axis);
    perm[rank - 2] = rank - 1;
    perm[rank - 1] = rank - 2;
    return this.transpose(a, perm);
  }

  expand(a: Value, dims: Dims): Value {
    return sameDims(this.dims(a), dims) ? a : this.op("Expand", [a, this.ints(dims)], dims);
  }

  matmul(a: Value, b: Value): Value {
    const left = this.dims(a);
    const right = this.dims(b);
    const batch = broadcast(left.slice(0, -2), right.slice(0, -2));
    return this.op("MatMul", [a, b], [...batch, left[left.length - 2], right[right.length - 1]]);
  }

  /** A reduction that keeps the reduced axes as ones. */
  reduce(
    opType: "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceSumSquare",
    a: Value,
    axes: readonly number[],
  ): Value {
    if (axes.length === 0) return opType === "ReduceSumSquare" ? this.mul(a, a) : a;
    const dims = this.dims(a).map((dim, axis) => (axes.includes(axis) ? 1 : dim));
    // ReduceSum takes its axes as an input since opset 13, the others since 18.
    const asInput = opType === "ReduceSum" || this.opset >= 18;
    return asInput
      ? this.op(opType, [a, this.ints(axes)], dims, { keepdims: 1 })
      : this.op(opType, [a], dims, { axes, keepdims: 1 });
  }

  /** Sums over the axes along which `dims` was broadcast to the shape of `a`. */
  unbroadcast(a: Value, dims: Dims): Value {
    const from = this.dims(a);
    if (sameDims(from, dims)) return a;
    const lead = from.length - dims.length;
    const axes = from.flatMap((dim, axis) => (axis < lead || (dims[axis - lead] === 1 && dim !== 1) ? [axis] : []));
    const summed = axes.every((axis) => from[axis] === 1) ? a : this.reduce("ReduceSum", a, axes);
    return this.reshape(summed, dims);
  }

  concat(values: readonly Value[], axis: number): Value {
    if (values.length === 1) return values[0];
    const dims = [...this.dims(values[0])];
    dims[axis] = values.reduce((sum, value) => sum + this.dims(value)[axis], 0);
    return this.op("Concat", values, dims, { axis });
  }

  /** Elements `[starts[i], ends[i])` of `axes[i]`, every `steps[i]`-th. */
  slice(a: Value, axes: readonly number[], starts: Dims, ends: Dims, steps?: Dims): Value {
    const dims = [...this.dims(a)];
    axes.forEach((axis, index) => {
      dims[axis] = Math.max(0, Math.ceil((ends[index] - starts[index]) / (steps?.[index] ?? 1)));
    });
    if (!steps && sameDims(dims, this.dims(a))) return a;
    const inputs = [a, this.ints(starts), this.ints(ends), this.ints(axes)];
    return this.op("Slice", steps ? [...inputs, this.ints(steps)] : inputs, dims);
  }

  /** Reverses the given axes. */
  flip(a: Value, axes: readonly number[]): Value {
    const moved = axes.filter((axis) => this.dims(a)[axis] > 1);
    if (moved.length === 0) return a;
    const minusOnes = this.ints(moved.map(() => -1));
    const ends = this.ints(moved.map(() => int64Min));
    return this.op("Slice", [a, minusOnes, ends, this.ints(moved), minusOnes], this.dims(a));
  }

  /** Zeros around `a`; negative counts cut. */
  pad(a: Value, before: Dims, after: Dims): Value {
    if ([...before, ...after].every((count) => count === 0)) return a;
    const dims = this.dims(a).map((dim, axis) => dim + before[axis] + after[axis]);
    return this.op("Pad", [a, this.ints([...before, ...after]), this.scalar(0, a)], dims);
  }

  /** Pieces of the given lengths along an axis. */
  split(a: Value, axis: number, lengths: Dims): Value[] {
    const shapes = lengths.map((length) => this.dims(a).map((dim, index) => (index === axis ? length : dim)));
    return this.ops("Split", [a, this.ints(lengths)], shapes, { axis });
  }

  /** Multiplies one axis by a constant matrix: `result[.., i, ..] = sum over o of matrix[o][i] a[.., o, ..]`. */
  contract(a: Value, axis: number, matrix: readonly (readonly number[])[]): Value {
    const dims = this.dims(a);
    const outer = elementCount(dims.slice(0, axis));
    const inner = elementCount(dims.slice(axis + 1));
    const rows = matrix.length;
    const columns = matrix[0]?.length ?? 0;
    const result = dims.map((dim, index) => (index === axis ? columns : dim));
    if (inner === 1) {
      const constant = this.floats([rows, columns], matrix.flat(), a);
      return this.reshape(this.matmul(this.reshape(a, [outer, rows]), constant), result);
    }
    const turned = Array.from({ length: columns }, (_, column) => matrix.map((row) => row[column])).flat();
    const constant = this.floats([columns, rows], turned, a);
    return this.reshape(this.matmul(constant, this.reshape(a, [outer, rows, inner])), result);
  }
}

/** Shape that two shapes broadcast to. */
export function broadcast(a: Dims, b: Dims): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const left = a[axis - rank + a.length] ?? 1;
    const right = b[axis - rank + b.length] ?? 1;
    return left === 1 ? right : left;
  });
}

export function sameDims(a: Dims, b: Dims): boolean {
  return a.length === b.length && a.every((dim, axis) => dim === b[axis]);
}

/** `[start, start + 1, ..., end - 1]`. */
export function range(start: number, end: number): number[] {
  return Array.from({ length: Math.max(0, end - start) }, (_, index) => start + index);
}

/** Whether a standard operator of this type computes the value. */
export function isOperator(value: Value | null | undefined, opType: string): boolean {
  return value?.producer?.opType === opType && value.producer.domain === "";
}

function reversed(length: number): number[] {
  return range(0, length).reverse();
}
