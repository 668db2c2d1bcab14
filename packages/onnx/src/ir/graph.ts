import type { DataType } from "./data-type.ts";
import { Node, type NodeInit } from "./node.ts";
import type { Tensor } from "./tensor.ts";
import { type Dimension, tensorType, Value } from "./value.ts";

/** Options of {@link Graph.replace}. */
export interface ReplaceOptions {
  /** A node that goes on reading the old value, such as the one that computes the new value from it. */
  except?: Node;
  /** The new value takes over name and type, as a graph output's always does: it stands for the same thing. */
  keepName?: boolean;
  /** What the old value is called once its name has gone over; default: the name with `_replaced` behind it. */
  formerName?: string;
}

/**
 * A dataflow graph. Nodes may stand in any order here; {@link Graph.sorted} and files have them in execution order.
 * Nodes of subgraphs read values of the graphs around them by reference.
 */
export class Graph {
  name: string;
  readonly inputs: Value[] = [];
  readonly outputs: Value[] = [];
  readonly nodes = new Set<Node>();
  /** Values with constant content. An initializer that is also an input is an overridable default. */
  readonly initializers = new Set<Value>();
  /** Values whose constant content is sparse: carried through, never interpreted. */
  readonly sparseInitializers = new Set<Value>();
  /** Fields of the file format that the IR does not model, kept for the way back. */
  extra: unknown = null;
  #takenNames: Set<string> | null = null;
  #takenNodeNames: Set<string> | null = null;

  constructor(name = "graph") {
    this.name = name;
  }

  addInput(name: string, dataType: DataType, shape: readonly Dimension[] | null): Value {
    const value = new Value(this.claimName(name), tensorType(dataType, shape));
    this.inputs.push(value);
    return value;
  }

  /** Adds a constant under a name like `name` that is still free. */
  addInitializer(name: string, tensor: Tensor): Value {
    const value = new Value(this.claimName(name), tensorType(tensor.dataType, tensor.dims));
    value.initializer = tensor;
    this.initializers.add(value);
    return value;
  }

  /**
   * Adds a node with `outputCount` fresh outputs named after `init.name` (or the operator). A name that is taken gets
   * a number behind it.
   * @returns the node; use {@link Graph.apply} for its single output
   */
  addNode(opType: string, inputs: readonly (Value | null)[], init: NodeInit & { outputCount?: number } = {}): Node {
    const node = new Node(opType, inputs, init);
    if (init.name) node.name = this.#claimNodeName(init.name);
    const base = init.name || opType;
    for (let index = 0; index < (init.outputCount ?? 1); index++) {
      node.addOutput(new Value(this.claimName(`${base}_output_${index}`)));
    }
    return this.insert(node);
  }

  /** Adds a node with one output and returns that output. */
  apply(opType: string, inputs: readonly (Value | null)[], init: NodeInit = {}): Value {
    return this.addNode(opType, inputs, init).output();
  }

  /** Takes a node that was built elsewhere (or removed) into this graph. */
  insert(node: Node): Node {
    node.graph = this;
    this.nodes.add(node);
    return node;
  }

  /** Removes a node and its uses. Its outputs must have no readers left. */
  remove(node: Node): void {
    node.inputs.forEach((value, index) => {
      value?.removeUse(node, index);
    });
    for (const subgraph of node.subgraphs) subgraph.#releaseUses();
    this.nodes.delete(node);
    node.graph = null;
  }

  /** Drops every use that nodes of this graph hold: for a subgraph whose node goes away. */
  #releaseUses(): void {
    for (const node of [...this.nodes]) this.remove(node);
  }

  /**
   * Makes every reader of `from` read `to`, graph outputs included. A graph output keeps its name: `to` takes the name over, or
   * an Identity carries it where `to` cannot, being an input, a constant or another output.
   */
  replace(from: Value, to: Value, options: ReplaceOptions = {}): void {
    if (from === to) return;
    if (options.keepName && this.#canRename(to)) to.type = from.type;
    for (const { node, index } of from.uses) if (node !== options.except) node.setInput(index, to);
    for (const [index, output] of this.outputs.entries()) {
      if (output !== from) continue;
      if (this.#canRename(to)) {
        to.type ??= from.type;
        this.#handName(from, to, options);
        this.outputs[index] = to;
      } else if (from.producer?.opType !== "Identity" || from.producer.input(0) !== to) {
        const carrier = this.addNode("Identity", [to], { name: `${from.name}_carrier` }).output();
        carrier.type = from.type;
        this.#handName(from, carrier, options);
        this.outputs[index] = carrier;
      }
    }
    if (options.keepName && this.#canRename(to)) this.#handName(from, to, options);
  }

  #canRename(value: Value): boolean {
    return value.producer?.graph === this && !this.outputs.includes(value);
  }

  #handName(from: Value, to: Value, { formerName }: ReplaceOptions): void {
    const { name } = from;
    from.name = this.claimName(formerName ?? `${name}_replaced`);
    to.name = name;
  }

  /** Reserves and returns `name`, or `name_1`, `name_2` ... if it is taken in this graph or a graph inside it. */
  claimName(name: string): string {
    if (!this.#takenNames) {
      this.#takenNames = new Set();
      for (const value of this.#allValues()) this.#takenNames.add(value.name);
    }
    let free = name;
    for (let count = 1; this.#takenNames.has(free); count++) free = `${name}_${count}`;
    this.#takenNames.add(free);
    return free;
  }

  /** ONNX Runtime refuses two nodes of one name. */
  #claimNodeName(name: string): string {
    this.#takenNodeNames ??= new Set([...this.nodes].map((node) => node.name));
    let free = name;
    for (let count = 1; this.#takenNodeNames.has(free); count++) free = `${name}_${count}`;
    this.#takenNodeNames.add(free);
    return free;
  }

  /** Values by name: inputs, initializers and node outputs of this graph, not of subgraphs. */
  valuesByName(): Map<string, Value> {
    const values = new Map<string, Value>();
    for (const value of this.ownValues()) values.set(value.name, value);
    return values;
  }

  *ownValues(): Generator<Value> {
    yield* this.inputs;
    for (const value of this.initializers) if (!this.inputs.includes(value)) yield value;
    yield* this.sparseInitializers;
    for (const node of this.nodes) for (const output of node.outputs) if (output) yield output;
  }

  *#allValues(): Generator<Value> {
    yield* this.ownValues();
    for (const node of this.nodes) for (const subgraph of node.subgraphs) yield* subgraph.#allValues();
  }

  /**
   * Nodes in execution order, stable: nodes keep the order they were added in where edges allow.
   * @throws CycleError naming one node of a cycle
   */
  sorted(): Node[] {
    const order: Node[] = [];
    const state = new Map<Node, "open" | "done">();
    for (const root of this.nodes) {
      if (state.has(root)) continue;
      const stack: { node: Node; next: number; needs: Node[] }[] = [
        { node: root, next: 0, needs: this.#dependencies(root) },
      ];
      state.set(root, "open");
      while (stack.length > 0) {
        const frame = stack[stack.length - 1];
        if (frame.next === frame.needs.length) {
          state.set(frame.node, "done");
          order.push(frame.node);
          stack.pop();
          continue;
        }
        const dependency = frame.needs[frame.next++];
        const seen = state.get(dependency);
        if (seen === "open") throw new CycleError(dependency);
        if (!seen) {
          state.set(dependency, "open");
          stack.push({ node: dependency, next: 0, needs: this.#dependencies(dependency) });
        }
      }
    }
    return order;
  }

  /** Nodes of this graph whose outputs `node` reads, directly or from inside its subgraphs. */
  #dependencies(node: Node): Node[] {
    const needs: Node[] = [];
    for (const value of node.inputs) if (value?.producer?.graph === this) needs.push(value.producer);
    for (const subgraph of node.subgraphs) {
      for (const value of subgraph.captures()) if (value.producer?.graph === this) needs.push(value.producer);
    }
    return needs;
  }

  /** Values from graphs around this one that its nodes (or its outputs) read. */
  captures(): Set<Value> {
    const own = new Set(this.ownValues());
    const captured = new Set<Value>();
    const visit = (value: Value | null) => {
      if (value && !own.has(value)) captured.add(value);
    };
    for (const node of this.nodes) {
      node.inputs.forEach(visit);
      for (const subgraph of node.subgraphs) for (const value of subgraph.captures()) visit(value);
    }
    this.outputs.forEach(visit);
    return captured;
  }
}

/** The graph's edges run in a circle through {@link node}. */
export class CycleError extends Error {
  override readonly name = "CycleError";
  readonly node: Node;

  constructor(node: Node) {
    super(`the graph has a cycle through ${node.label}`);
    this.node = node;
  }
}
