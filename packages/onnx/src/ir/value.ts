import type { DataType } from "./data-type.ts";
import type { Node } from "./node.ts";
import type { Tensor } from "./tensor.ts";

/** A dimension: a length, a symbol shared by equal dimensions, or unknown. */
export type Dimension = number | string | null;

/** Type of a value. Kinds other than tensors (sequences, maps, optionals) are carried through unread. */
export type ValueType =
  | { readonly kind: "tensor"; readonly dataType: DataType; readonly shape: readonly Dimension[] | null }
  | { readonly kind: "opaque"; readonly proto: unknown };

/** One input position of one node that reads a value. */
export interface Use {
  readonly node: Node;
  readonly index: number;
}

/**
 * An edge of the graph: made by one node, or a graph input, or an initializer (or an input with a default: both).
 * Its name is a label; edits go by identity.
 */
export class Value {
  name: string;
  type: ValueType | null;
  /** Constant content of an initializer. */
  initializer: Tensor | null = null;
  /** The node that computes this value; null for graph inputs and initializers. */
  producer: Node | null = null;
  /** Fields of the file format that the IR does not model, kept for the way back. */
  extra: unknown = null;
  readonly #readers = new Map<Node, Set<number>>();

  constructor(name: string, type: ValueType | null = null) {
    this.name = name;
    this.type = type;
  }

  /** Every input position that reads this value, nodes inside subgraphs included. */
  get uses(): Use[] {
    const uses: Use[] = [];
    for (const [node, indices] of this.#readers) for (const index of indices) uses.push({ node, index });
    return uses;
  }

  /** Whether a node's input position reads this value. */
  isReadBy(node: Node, index: number): boolean {
    return this.#readers.get(node)?.has(index) ?? false;
  }

  /** The distinct nodes that read this value. */
  get consumers(): Node[] {
    return [...this.#readers.keys()];
  }

  /** Called by {@link Node} alone. */
  addUse(node: Node, index: number): void {
    const indices = this.#readers.get(node);
    if (indices) indices.add(index);
    else this.#readers.set(node, new Set([index]));
  }

  /** Called by {@link Node} alone. */
  removeUse(node: Node, index: number): void {
    const indices = this.#readers.get(node);
    indices?.delete(index);
    if (indices?.size === 0) this.#readers.delete(node);
  }

  /** Concrete dimensions where all are known, else null. */
  get concreteShape(): readonly number[] | null {
    if (this.initializer) return this.initializer.dims;
    if (this.type?.kind !== "tensor" || !this.type.shape) return null;
    return this.type.shape.every((dim) => typeof dim === "number") ? (this.type.shape as readonly number[]) : null;
  }

  get dataType(): DataType | null {
    if (this.initializer) return this.initializer.dataType;
    return this.type?.kind === "tensor" ? this.type.dataType : null;
  }
}

/** The type of a dense tensor; a null shape says that even the rank is unknown. */
export function tensorType(dataType: DataType, shape: readonly Dimension[] | null): ValueType {
  return { kind: "tensor", dataType, shape };
}
