import { cloneModel, elementCount, type Graph, type Model, Tensor, type Value } from "@quad-lora/onnx";

/** Outputs and inputs that the observing graphs add. */
export const observed = {
  /** Output `[2 * values]`: least and greatest element of each value, alternating. */
  extremes: "quad.extremes",
  /** Output `[values * bins]`. */
  counts: "quad.counts",
  /** Input `[values]`: lower edge of each histogram. */
  low: "quad.low",
  /** Input `[values]`: bins per unit of the value. */
  binsPerUnit: "quad.bins_per_unit",
} as const;

/**
 * A copy of the graph with one more output, `[2 * values]`: the least and the greatest element of every named value, in turn.
 * Only these leave the graph; no activation is copied out. Values without elements count as zero.
 */
export function rangeGraph(model: Model, names: readonly string[]): Model {
  const copy = cloneModel(model);
  const { graph } = copy;
  const values = lookUp(graph, names);
  const zero = graph.addInitializer("quad.zero", Tensor.float32([1], [0]));
  const constants = new Constants(graph);
  const extremes = lastToFirst(values, (value) => {
    const flat = flatten(graph, value, constants);
    const hasElements = elementCount(value.concreteShape ?? [0]) > 0;
    const some = hasElements ? flat : graph.apply("Concat", [flat, zero], { attributes: { axis: 0 } });
    const [greatest, least] = ["ReduceMax", "ReduceMin"].map((opType) =>
      graph.apply(opType, [some], { attributes: { keepdims: 1 } }),
    );
    return [least, greatest];
  });
  graph.outputs.push(named(concat(graph, extremes.flat()), observed.extremes));
  return copy;
}

/**
 * A copy of the graph with one more output, `[values * bins]`: how many elements of every named value fall into each bin of
 * its histogram. Values larger than `sampled` elements contribute an evenly spaced sample.
 */
export function histogramGraph(model: Model, names: readonly string[], bins: number, sampled: number): Model {
  const copy = cloneModel(model);
  const { graph } = copy;
  const values = lookUp(graph, names);
  const low = split(graph, graph.addInput(observed.low, "float32", [names.length]), names.length);
  const density = split(graph, graph.addInput(observed.binsPerUnit, "float32", [names.length]), names.length);
  const constants = new Constants(graph);
  const constant = (name: string, tensor: Tensor) => graph.addInitializer(name, tensor);
  const empty = constant("quad.empty_bins", Tensor.float32([bins], new Float32Array(bins)));
  const first = constant("quad.first_bin", Tensor.scalar(0));
  const last = constant("quad.last_bin", Tensor.scalar(bins - 1));
  const counts = lastToFirst(values, (value, index) => {
    const sample = strided(graph, value, flatten(graph, value, constants), sampled, constants);
    const position = graph.apply("Mul", [graph.apply("Sub", [sample, low[index]]), density[index]]);
    const bin = graph.apply("Cast", [graph.apply("Clip", [position, first, last])], { attributes: { to: 7 } });
    // Ones of the bins' shape, without shape operators.
    const ones = graph.apply("Cast", [graph.apply("Equal", [bin, bin])], { attributes: { to: 1 } });
    return graph.apply("ScatterElements", [empty, bin, ones], {
      attributes: { axis: 0, reduction: "add" },
    });
  });
  graph.outputs.push(named(concat(graph, counts), observed.counts));
  return copy;
}

function lookUp(graph: Graph, names: readonly string[]): Value[] {
  const values = graph.valuesByName();
  return names.map((name) => {
    const value = values.get(name);
    if (!value) throw new Error(`the graph has no value "${name}" to observe`);
    return value;
  });
}

function named(value: Value, name: string): Value {
  value.name = name;
  return value;
}

/** One-element int64 constants, each made once. */
class Constants {
  readonly #graph: Graph;
  readonly #made = new Map<number, Value>();

  constructor(graph: Graph) {
    this.#graph = graph;
  }

  int(value: number): Value {
    const known = this.#made.get(value);
    if (known) return known;
    const made = this.#graph.addInitializer(`quad.int.${value}`, Tensor.int64([1], [value]));
    this.#made.set(value, made);
    return made;
  }
}

/**
 * Results in order, from calls that add nodes for the last item first. ONNX Runtime runs nodes in the order of a depth-first walk
 * back from the graph's last output, and takes that of a node's inputs first that was added last. So every value is observed as
 * soon as it exists, and freed; added in the natural order, all values of the graph would live until its end.
 */
function lastToFirst<T, R>(items: readonly T[], add: (item: T, index: number) => R): R[] {
  const results = new Array<R>(items.length);
  for (let index = items.length - 1; index >= 0; index--) results[index] = add(items[index], index);
  return results;
}

/** ONNX Runtime's session creation slows down with the square of a node's inputs: concatenate in a tree. */
function concat(graph: Graph, values: readonly Value[]): Value {
  const width = 32;
  let level = [...values];
  while (level.length > 1) {
    const groups = Array.from({ length: Math.ceil(level.length / width) }, (_, group) =>
      level.slice(group * width, (group + 1) * width),
    );
    level = lastToFirst(groups, (group) => graph.apply("Concat", group, { attributes: { axis: 0 } }));
  }
  return level[0];
}

function flatten(graph: Graph, value: Value, constants: Constants): Value {
  // Flatten instead of Reshape to -1: it also takes values with a zero dimension.
  const matrix = graph.apply("Flatten", [value], { attributes: { axis: 0 } });
  return graph.apply("Squeeze", [matrix, constants.int(0)]);
}

/** Every n-th element, n such that at most `count` remain. Values of unknown size (the rank's) are taken whole. */
function strided(graph: Graph, value: Value, flat: Value, count: number, constants: Constants): Value {
  const size = elementCount(value.concreteShape ?? [0]);
  // A constant step: shape operators would make ONNX Runtime's session creation quadratic.
  const step = Math.ceil(size / count);
  if (step <= 1) return flat;
  const all = Number.MAX_SAFE_INTEGER;
  return graph.apply("Slice", [flat, constants.int(0), constants.int(all), constants.int(0), constants.int(step)]);
}

/** `[n]` -> n values `[1]`. */
function split(graph: Graph, vector: Value, count: number): Value[] {
  const sizes = graph.addInitializer("quad.split", Tensor.int64([count], new Array(count).fill(1)));
  return graph.addNode("Split", [vector, sizes], { attributes: { axis: 0 }, outputCount: count }).outputs as Value[];
}
