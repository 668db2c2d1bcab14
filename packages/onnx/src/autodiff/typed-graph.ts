import { float32ToFloat16Bits, InputError } from "@quad-lora/base";
import { type DataType, isFloat } from "../ir/data-type.ts";
import type { Graph } from "../ir/graph.ts";
import type { Model } from "../ir/model.ts";
import type { Node } from "../ir/node.ts";
import { Tensor } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";

/** Concrete dimensions, outermost first. */
export type Dims = readonly number[];

/** What rules read from a graph, concrete types and shapes and constants, and the constants they add to it. */
export class TypedGraph {
  readonly model: Model;
  readonly graph: Graph;
  /** Version of the standard operator set. */
  readonly opset: number;
  /** Names of new nodes and constants start with this. */
  scope = "gradient";
  readonly #constants = new Map<string, Value>();

  constructor(model: Model) {
    this.model = model;
    this.graph = model.graph;
    this.opset = model.opset;
  }

  /** Concrete dimensions of a value. Throws {@link InputError} where they are unknown. */
  dims(value: Value): Dims {
    const shape = value.concreteShape;
    if (shape) return shape;
    throw new InputError({
      what: "the shape is not known",
      file: this.model.file,
      where: `value "${value.name}"`,
      fix: "Run inferShapes or specialize on the model first.",
    });
  }

  /** Element type of a value. Throws {@link InputError} where it is unknown. */
  type(value: Value): DataType {
    const type = value.dataType;
    if (type) return type;
    throw new InputError({
      what: "the element type is not known",
      file: this.model.file,
      where: `value "${value.name}"`,
      fix: "Run inferShapes or specialize on the model first.",
    });
  }

  /** The numbers of a constant; null for values that are computed or given at run time. */
  numbers(value: Value | null | undefined): number[] | null {
    if (!value) return null;
    if (value.producer?.opType === "Constant") {
      const node = value.producer;
      const tensor = node.tensor("value");
      if (tensor) return tensor.toNumbers();
      if (node.attributes.get("value_ints")) return [...node.ints("value_ints")];
      if (node.attributes.get("value_int")) return [node.int("value_int")];
      return node.attributes.get("value_float") ? [node.float("value_float")] : null;
    }
    return this.isConstant(value) ? value.initializer!.toNumbers() : null;
  }

  /** Like {@link numbers}, for inputs that must be constant: indices, pads, axes. */
  requiredNumbers(node: Node, index: number): number[] {
    const numbers = this.numbers(node.inputs[index]);
    if (numbers) return numbers;
    throw new InputError({
      what: `input ${index} ("${node.inputs[index]?.name ?? ""}") must be constant to differentiate this node`,
      file: this.model.file,
      where: node.label,
      fix: "Run specialize on the model first.",
    });
  }

  /** Whether the value is an initializer that no caller can override. */
  isConstant(value: Value): boolean {
    return value.initializer !== null && !this.graph.inputs.includes(value);
  }

  /** Axes of a reduction, Squeeze or Unsqueeze, from the input (index 1) or the attribute, made non-negative. */
  axes(node: Node, rank: number): number[] | null {
    const given = node.inputs[1] ? this.requiredNumbers(node, 1) : [...node.ints("axes", [])];
    return given.length > 0 ? given.map((axis) => (axis < 0 ? axis + rank : axis)) : null;
  }

  tensor(tensor: Tensor): Value {
    return this.graph.addInitializer(`${this.scope}/constant`, tensor);
  }

  /** A 1-D int64 constant. */
  ints(values: readonly (number | bigint)[]): Value {
    return this.#cached(`i${values}`, () => Tensor.int64([values.length], values));
  }

  /** A zero-dimensional constant of the type of `like`. */
  scalar(value: number, like: Value): Value {
    const type = this.type(like);
    return this.#cached(`${type}${Object.is(value, -0) ? 0 : value}`, () => floatTensor(type, [], [value]));
  }

  /** A constant of the type of `like`. */
  floats(dims: Dims, values: readonly number[], like: Value): Value {
    return this.tensor(floatTensor(this.type(like), dims, values));
  }

  /** A 1-D constant of ones. */
  ones(length: number, like: Value): Value {
    const type = this.type(like);
    return this.#cached(`ones ${type} ${length}`, () => floatTensor(type, [length], new Array(length).fill(1)));
  }

  #cached(key: string, make: () => Tensor): Value {
    const known = this.#constants.get(key);
    if (known && this.graph.initializers.has(known)) return known;
    const value = this.tensor(make());
    this.#constants.set(key, value);
    return value;
  }
}

function floatTensor(type: DataType, dims: Dims, values: readonly number[]): Tensor {
  switch (type) {
    case "float32":
      return Tensor.float32(dims, values);
    case "float64":
      return Tensor.of("float64", dims, Float64Array.from(values));
    case "float16":
      return Tensor.of("float16", dims, Uint16Array.from(values, float32ToFloat16Bits));
    case "int64":
      return Tensor.int64(dims, values);
    default:
      throw new TypeError(`no ${isFloat(type) ? "floating-point " : ""}constant of type ${type} can be made`);
  }
}
