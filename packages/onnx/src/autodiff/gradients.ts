import { InputError } from "@quad-lora/base";
import { isFloat } from "../ir/data-type.ts";
import type { Model } from "../ir/model.ts";
import { floatAttribute, type Node } from "../ir/node.ts";
import type { Value } from "../ir/value.ts";
import { Builder, sameDims } from "./builder.ts";
import { recomputeSegments, type SegmentOptions } from "./recompute.ts";
import type { Gradient, GradientOptions, ProductGradient, SliceGradient } from "./rule.ts";
import { gradientRule } from "./rules/index.ts";

/** Where differentiation starts. */
export interface DifferentiatedOutput {
  readonly value: Value;
  /** Gradient of the loss by this value, of its shape. Without it the value is the loss: a single element. */
  readonly seed?: Value;
}

/** What {@link buildGradients} differentiates, by what, and what it may recompute. */
export interface GradientRequest extends GradientOptions, SegmentOptions {
  readonly outputs: readonly DifferentiatedOutput[];
  /** Values to differentiate by: graph inputs, initializers, or values in between. */
  readonly wrt: readonly Value[];
}

/**
 * Adds to the model's graph what computes the gradients of a loss, in operators that every ONNX runtime has for
 * inference: reverse-mode automatic differentiation from graph to graph. The graph's interface stays as it was: make the
 * results outputs, or feed them to an optimizer. Shapes must be concrete, see `specialize` and `inferShapes`.
 * @returns one gradient per value of `wrt`, of the value's shape; zeros where the outputs do not depend on it
 * @throws InputError for an operator on the path that has no gradient, or a shape that is unknown
 */
export function buildGradients(model: Model, request: GradientRequest): Map<Value, Value> {
  const build = new Builder(model);
  const walk = new ReverseWalk(build, request);
  const gradients = walk.run();
  recomputeSegments(build, request, walk.forward, (value) => walk.gradientOf(value));
  return gradients;
}

class ReverseWalk {
  /** The nodes of the model before differentiation, in execution order. */
  readonly forward: readonly Node[];
  readonly #forwardNodes: ReadonlySet<Node>;
  readonly #build: Builder;
  readonly #request: GradientRequest;
  readonly #contributions = new Map<Value, Gradient[]>();
  readonly #totals = new Map<Value, Value>();

  constructor(build: Builder, request: GradientRequest) {
    this.#build = build;
    this.#request = request;
    this.forward = build.graph.sorted();
    this.#forwardNodes = new Set(this.forward);
  }

  run(): Map<Value, Value> {
    const build = this.#build;
    const request = this.#request;
    for (const output of request.outputs) this.#contribute(output.value, this.#seed(output));
    const active = this.#dependents(new Set(request.wrt));
    for (const node of this.#path(active).reverse()) {
      build.scope = `gradient/${node.name || node.opType}`;
      this.#visit(node, active);
    }
    build.scope = "gradient";
    const results = new Map<Value, Value>();
    for (const value of request.wrt) {
      results.set(value, this.gradientOf(value) ?? build.expand(build.scalar(0, value), build.dims(value)));
    }
    return results;
  }

  /** The sum of what has arrived at a value. Final once all its readers were visited. */
  gradientOf(value: Value): Value | null {
    const known = this.#totals.get(value);
    if (known) return known;
    const parts = this.#contributions.get(value);
    if (!parts) return null;
    const total = accumulate(this.#build, parts, this.#build.dims(value));
    this.#totals.set(value, total);
    return total;
  }

  #seed({ value, seed }: DifferentiatedOutput): Value {
    const build = this.#build;
    const dims = build.dims(value);
    if (!seed && dims.some((dim) => dim !== 1)) {
      throw new InputError({
        what: "only a single number can be differentiated without an upstream gradient",
        file: build.model.file,
        where: `value "${value.name}"`,
        expected: "one element",
        got: `[${dims}]`,
        fix: "Give a seed, or reduce the value to a loss.",
      });
    }
    if (seed && !sameDims(build.dims(seed), dims)) {
      throw new InputError({
        what: "the upstream gradient has another shape than its value",
        file: build.model.file,
        where: `value "${value.name}"`,
        expected: `[${dims}]`,
        got: `[${build.dims(seed)}]`,
      });
    }
    return seed ?? build.full(1, dims, value);
  }

  /** Values that depend on `roots` in a differentiable way. */
  #dependents(roots: Set<Value>): ReadonlySet<Value> {
    const active = new Set(roots);
    for (const node of this.forward) {
      if (!readsAny(node, active)) continue;
      const carries = isQuantization(node) || node.inputs.some((value) => value && active.has(value) && !isReal(value));
      for (const output of node.outputs) if (output && (isReal(output) || carries)) active.add(output);
    }
    return active;
  }

  /** Active nodes that an output depends on, in execution order. */
  #path(active: ReadonlySet<Value>): Node[] {
    const wanted = new Set(this.#request.outputs.map(({ value }) => value));
    const nodes: Node[] = [];
    for (const node of [...this.forward].reverse()) {
      if (!node.outputs.some((value) => value && wanted.has(value) && active.has(value))) continue;
      if (!readsAny(node, active)) continue;
      nodes.push(node);
      for (const value of node.inputs) if (value) wanted.add(value);
    }
    return nodes.reverse();
  }

  #visit(node: Node, active: ReadonlySet<Value>): void {
    const build = this.#build;
    const request = this.#request;
    const gradients = node.outputs.map((value) => value && this.gradientOf(value));
    if (gradients.every((gradient) => gradient === null)) return;
    const needs = node.inputs.map((value) => value !== null && active.has(value));
    const rule = node.subgraphs.length > 0 ? null : gradientRule(node.operator);
    if (!rule) throw missingRule(build.model, node);
    const makers = rule({
      node,
      gradient: gradients.find((gradient) => gradient !== null)!,
      gradients,
      needs,
      build,
      options: request,
      gradientOf: (value) => this.gradientOf(value),
      readersOf: (value) => value.uses.filter((use) => this.#forwardNodes.has(use.node)),
    });
    node.inputs.forEach((value, index) => {
      if (!needs[index]) return;
      if (makers[index] === undefined) throw missingInputRule(build.model, node, index);
      const gradient = makers[index]?.();
      if (gradient) this.#contribute(value!, gradient);
    });
  }

  #contribute(value: Value, gradient: Gradient): void {
    const dims = this.#build.dims(value);
    const part = "kind" in gradient ? gradient : this.#build.unbroadcast(gradient, dims);
    const parts = this.#contributions.get(value);
    if (parts) parts.push(part);
    else this.#contributions.set(value, [part]);
  }
}

/** Adds up contributions: slices that tile an axis become a Concat, matrix products accumulate inside Gemm. */
function accumulate(build: Builder, parts: readonly Gradient[], dims: readonly number[]): Value {
  const slices = parts.filter((part): part is SliceGradient => "kind" in part && part.kind === "slice");
  const products = parts.filter((part): part is ProductGradient => "kind" in part && part.kind === "product");
  const whole = parts.filter((part): part is Value => !("kind" in part));
  const tiled = tile(build, slices, dims);
  const sums = tiled ? [...whole, tiled] : [...whole, ...slices.map((slice) => widen(build, slice, dims))];
  const start = sums.length > 0 ? sums.reduce((sum, value) => build.add(sum, value)) : null;
  const total = products.reduce<Value | null>((sum, product) => addProduct(build, sum, product), start);
  return build.reshape(total!, dims);
}

/** How many times as many rows as columns make a transposed product worth the transposition of its result. */
const tallResult = 4;

/** `sum + scale op(left) op(right)` in one Gemm. */
function addProduct(build: Builder, sum: Value | null, product: ProductGradient): Value {
  const { left, right, transposeLeft, transposeRight, scale } = product;
  const [leftRows, leftColumns] = build.dims(left);
  const [rightRows, rightColumns] = build.dims(right);
  const rows = transposeLeft ? leftColumns : leftRows;
  const columns = transposeRight ? rightRows : rightColumns;
  // The gradient of a projection to few ranks, X^T G: kernels for wide results are several times as fast with G^T X.
  if (!sum && transposeLeft && rows >= tallResult * columns) {
    const turned = { left: right, right: left, transposeLeft: !transposeRight, transposeRight: false, scale };
    return build.transposeMatrix(addProduct(build, null, { kind: "product", ...turned }));
  }
  const inputs = sum ? [left, right, build.reshape(sum, [rows, columns])] : [left, right];
  const attributes = {
    ...(transposeLeft && { transA: 1 }),
    ...(transposeRight && { transB: 1 }),
    ...(scale !== 1 && { alpha: floatAttribute(scale) }),
  };
  return build.op("Gemm", inputs, [rows, columns], attributes);
}

/** The concatenation of slices that follow each other and cover one axis; null if they do not. */
function tile(build: Builder, slices: readonly SliceGradient[], dims: readonly number[]): Value | null {
  if (slices.length === 0) return null;
  const { axis } = slices[0];
  if (slices.some((slice) => slice.axis !== axis)) return null;
  const ordered = [...slices].sort((a, b) => a.start - b.start);
  let end = 0;
  for (const { start, value } of ordered) {
    if (start !== end) return null;
    end += build.dims(value)[axis];
  }
  if (end !== dims[axis]) return null;
  return build.concat(
    ordered.map((slice) => slice.value),
    axis,
  );
}

function widen(build: Builder, { value, axis, start }: SliceGradient, dims: readonly number[]): Value {
  const before = dims.map((_, index) => (index === axis ? start : 0));
  const after = dims.map((dim, index) => (index === axis ? dim - start - build.dims(value)[axis] : 0));
  return build.pad(value, before, after);
}

function readsAny(node: Node, values: ReadonlySet<Value>): boolean {
  if (node.inputs.some((value) => value && values.has(value))) return true;
  return node.subgraphs.some((graph) => [...graph.captures()].some((value) => values.has(value)));
}

function isReal(value: Value): boolean {
  return value.dataType !== null && isFloat(value.dataType);
}

function isQuantization(node: Node): boolean {
  return node.opType === "QuantizeLinear";
}

function missingRule(model: Model, node: Node): InputError {
  const isControl = node.subgraphs.length > 0;
  return new InputError({
    what: `operator ${node.operator} of opset ${model.opsets.get(node.domain) ?? "unknown"} has no gradient`,
    file: model.file,
    where: node.label,
    fix: isControl
      ? "Export the model without control flow, or run specialize so that constant conditions fold away."
      : "Export the model in standard operators, or differentiate by values behind this node only.",
  });
}

function missingInputRule(model: Model, node: Node, index: number): InputError {
  return new InputError({
    what: `input ${index} ("${node.input(index).name}") of ${node.operator} has no gradient`,
    file: model.file,
    where: node.label,
    fix: "Differentiate by other values.",
  });
}
