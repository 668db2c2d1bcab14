import type { Graph } from "./graph.ts";
import type { Tensor } from "./tensor.ts";
import { Value } from "./value.ts";

/** A node attribute. Kinds that the IR does not interpret (types, sparse tensors, function references) are opaque. */
export type Attribute = AttributeContent & {
  /** Fields of the file format that the IR does not model, kept for the way back. */
  readonly extra?: unknown;
};

type AttributeContent =
  | { readonly kind: "float"; readonly value: number }
  | { readonly kind: "int"; readonly value: number | bigint }
  | { readonly kind: "string"; readonly value: string }
  | { readonly kind: "tensor"; readonly value: Tensor; readonly name?: string }
  | { readonly kind: "graph"; readonly value: Graph }
  | { readonly kind: "floats"; readonly value: readonly number[] }
  | { readonly kind: "ints"; readonly value: readonly (number | bigint)[] }
  | { readonly kind: "strings"; readonly value: readonly string[] }
  | { readonly kind: "graphs"; readonly value: readonly Graph[] }
  | { readonly kind: "opaque"; readonly proto: unknown };

/** Shorthand for attributes when building nodes: whole numbers become `int`, text `string`, arrays `ints`. */
export type AttributeInput = number | string | readonly number[] | Tensor | Attribute;

/** What a new {@link Node} may be given besides operator, inputs and outputs; the domain is the standard one by default. */
export interface NodeInit {
  name?: string;
  domain?: string;
  attributes?: Readonly<Record<string, AttributeInput>>;
}

/** One operator application. Its edges change through {@link setInput} so that uses stay right. */
export class Node {
  name: string;
  readonly opType: string;
  /** Operator set domain; "" is the standard one. */
  readonly domain: string;
  readonly attributes: Map<string, Attribute>;
  readonly outputs: (Value | null)[] = [];
  /** The graph that holds this node; null once removed. */
  graph: Graph | null = null;
  /** Fields of the file format that the IR does not model, kept for the way back. */
  extra: unknown = null;
  readonly #operands: (Value | null)[] = [];

  constructor(opType: string, inputs: readonly (Value | null)[], init: NodeInit = {}) {
    this.opType = opType;
    this.domain = init.domain === "ai.onnx" ? "" : (init.domain ?? "");
    this.name = init.name ?? "";
    this.attributes = new Map(Object.entries(init.attributes ?? {}).map(([name, value]) => [name, toAttribute(value)]));
    inputs.forEach((value, index) => {
      this.setInput(index, value);
    });
  }

  /** Inputs by position; null stands for an omitted optional input. */
  get inputs(): readonly (Value | null)[] {
    return this.#operands;
  }

  /** The input at `index`. Throws if it is omitted. */
  input(index: number): Value {
    const value = this.#operands[index];
    if (!value) throw new Error(`${this.label} has no input ${index}`);
    return value;
  }

  /** The output at `index`. Throws if it is omitted. */
  output(index = 0): Value {
    const value = this.outputs[index];
    if (!value) throw new Error(`${this.label} has no output ${index}`);
    return value;
  }

  setInput(index: number, value: Value | null): void {
    this.#operands[index]?.removeUse(this, index);
    while (this.#operands.length < index) this.#operands.push(null);
    this.#operands[index] = value;
    value?.addUse(this, index);
  }

  addOutput(value: Value | null): void {
    this.outputs.push(value);
    if (value) value.producer = this;
  }

  /** Operator with its domain, as error messages and registries name it: `Conv`, `com.microsoft.QLinearAdd`. */
  get operator(): string {
    return this.domain ? `${this.domain}.${this.opType}` : this.opType;
  }

  /** How messages name this node. */
  get label(): string {
    return `${this.operator} node "${this.name || (this.outputs.find(Boolean)?.name ?? "")}"`;
  }

  int(name: string, fallback?: number): number {
    const attribute = this.attributes.get(name);
    if (attribute?.kind === "int") return Number(attribute.value);
    return required(this, name, fallback);
  }

  float(name: string, fallback?: number): number {
    const attribute = this.attributes.get(name);
    if (attribute?.kind === "float") return attribute.value;
    return required(this, name, fallback);
  }

  string(name: string, fallback?: string): string {
    const attribute = this.attributes.get(name);
    if (attribute?.kind === "string") return attribute.value;
    return required(this, name, fallback);
  }

  ints(name: string, fallback?: readonly number[]): readonly number[] {
    const attribute = this.attributes.get(name);
    if (attribute?.kind === "ints") return attribute.value.map(Number);
    return required(this, name, fallback);
  }

  tensor(name: string): Tensor | null {
    const attribute = this.attributes.get(name);
    return attribute?.kind === "tensor" ? attribute.value : null;
  }

  /** Subgraphs in attributes (the branches of If, the bodies of Loop and Scan). */
  get subgraphs(): Graph[] {
    const graphs: Graph[] = [];
    for (const attribute of this.attributes.values()) {
      if (attribute.kind === "graph") graphs.push(attribute.value);
      else if (attribute.kind === "graphs") graphs.push(...attribute.value);
    }
    return graphs;
  }
}

function required<T>(node: Node, name: string, fallback: T | undefined): T {
  if (fallback === undefined) throw new Error(`${node.label} lacks its attribute "${name}"`);
  return fallback;
}

/** A float attribute; plain numbers become integers. */
export function floatAttribute(value: number): Attribute {
  return { kind: "float", value };
}

export function toAttribute(value: AttributeInput): Attribute {
  if (typeof value === "number") return { kind: "int", value };
  if (typeof value === "string") return { kind: "string", value };
  if (Array.isArray(value)) return { kind: "ints", value: value as readonly number[] };
  if ("kind" in value) return value as Attribute;
  return { kind: "tensor", value: value as Tensor };
}

/** A value that nothing computes yet, to be given to {@link Node.addOutput}. */
export function outputValue(name: string): Value {
  return new Value(name);
}
