import { InputError } from "@quad-lora/base";
import type { Node } from "../ir/node.ts";
import type { Use, Value } from "../ir/value.ts";
import type { Builder } from "./builder.ts";

/** The gradient is `value` at `[start, start + length of value)` of one axis, and zero elsewhere. */
export interface SliceGradient {
  readonly kind: "slice";
  readonly value: Value;
  readonly axis: number;
  readonly start: number;
}

/**
 * The gradient is a matrix product `scale * op(left) op(right)` of two matrices, reshaped to the input's shape. Several of
 * them add up inside Gemm, with no separate additions.
 */
export interface ProductGradient {
  readonly kind: "product";
  readonly left: Value;
  readonly right: Value;
  readonly transposeLeft: boolean;
  readonly transposeRight: boolean;
  readonly scale: number;
}

/** One contribution to the gradient of an input. A plain value may still carry the axes along which the input was broadcast. */
export type Gradient = Value | SliceGradient | ProductGradient;

/** How rules treat operators whose true derivative is of no use. */
export interface GradientOptions {
  /** Let gradients pass through Round unchanged: for fake quantization written with float operators. */
  straightThroughRound?: boolean;
}

/** What a rule gets: a node on the path, and the gradients of its outputs. */
export interface RuleCall {
  readonly node: Node;
  /** Gradient of the first output. */
  readonly gradient: Value;
  /** Gradients by output; null where none arrives. */
  readonly gradients: readonly (Value | null)[];
  /** By input: whether its gradient is asked for. */
  readonly needs: readonly boolean[];
  readonly build: Builder;
  readonly options: GradientOptions;
  /** The whole gradient of a value whose readers have all been visited; null if none arrived. */
  gradientOf(value: Value): Value | null;
  /** Where the forward graph reads a value: without the readers that gradients added. */
  readersOf(value: Value): Use[];
}

/**
 * Gradients of a node's inputs, by position. A function makes one, and runs only when that gradient is needed; null
 * says that the gradient is zero. Un-broadcasting is the caller's work.
 */
export type GradientRule = (call: RuleCall) => readonly ((() => Gradient) | null)[];

/** A matrix product as a gradient, see {@link ProductGradient}. */
export function product(
  left: Value,
  right: Value,
  { transposeLeft = false, transposeRight = false, scale = 1 } = {},
): ProductGradient {
  return { kind: "product", left, right, transposeLeft, transposeRight, scale };
}

/** The error of a node that cannot be differentiated as it is. */
export function unsupported(call: Pick<RuleCall, "node" | "build">, what: string, fix: string): InputError {
  const { node, build } = call;
  return new InputError({
    what: `${what} cannot be differentiated (opset ${build.model.opsets.get(node.domain) ?? "unknown"})`,
    file: build.model.file,
    where: node.label,
    fix,
  });
}
