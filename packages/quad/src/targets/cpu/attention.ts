import { floatAttribute, type Graph, type Model, type Node, type Value } from "@quad-lora/onnx";

/** softmax(factor * q k^T) v of several heads, as a graph spells it out. */
interface Attention {
  scores: Node;
  weighted: Node;
  heads: number;
  factor: number;
  /** `[batch, tokens, heads * size]` */
  query: Value;
  key: Value;
  value: Value;
  output: Value;
}

/**
 * Puts one MultiHeadAttention of com.microsoft in the place of an attention's two products and its softmax, where both
 * products are float: it never holds the scores of all tokens, which at 4096 tokens are half a gigabyte, twice.
 * Edits `model` in place.
 * @param isFloat - whether a product of two activations stays float
 */
export function fuseAttention({ graph }: Model, isFloat: (product: Node) => boolean): void {
  for (const node of graph.sorted()) {
    const attention = node.opType === "Softmax" ? matchAttention(graph, node) : null;
    if (!attention || !isFloat(attention.scores) || !isFloat(attention.weighted)) continue;
    const { query, key, value, output, heads, factor } = attention;
    const fused = graph.apply("MultiHeadAttention", [query, key, value], {
      name: `${node.name}/MultiHeadAttention`,
      domain: "com.microsoft",
      attributes: { num_heads: heads, scale: floatAttribute(factor) },
    });
    graph.replace(output, fused, { keepName: true });
  }
}

function matchAttention(graph: Graph, softmax: Node): Attention | null {
  const dims = softmax.output().concreteShape;
  if (!dims || ![-1, dims.length - 1].includes(softmax.int("axis", -1))) return null;
  const scores = throughFactors(softmax.input(0), 1);
  const product = scores.value.producer;
  const weighted = soleConsumer(graph, softmax.output());
  if (product?.opType !== "MatMul" || weighted?.opType !== "MatMul" || weighted.input(0) !== softmax.output())
    return null;
  const size = weighted.output().concreteShape?.at(-1);
  const [tokens, context] = dims.slice(-2);
  if (!size) return null;
  const query = splitHeads(product.input(0), tokens, size, false);
  const key = splitHeads(product.input(1), context, size, true);
  const value = splitHeads(weighted.input(1), context, size, false);
  const output = joinHeads(graph, weighted.output(), tokens, size);
  if (!query || !key || !value || !output || value.factor !== 1) return null;
  if (query.heads !== key.heads || query.heads !== value.heads || query.heads !== output.heads) return null;
  return {
    scores: product,
    weighted,
    heads: query.heads,
    factor: scores.factor * query.factor * key.factor,
    query: query.source,
    key: key.source,
    value: value.source,
    output: output.source,
  };
}

interface Heads {
  /** `[batch, tokens, heads * size]` */
  source: Value;
  heads: number;
  factor: number;
}

/**
 * Finds what was split into heads to give `value`: `[batch * heads, tokens, size]` or `[batch, heads, tokens, size]`, or with
 * the last two axes swapped.
 */
function splitHeads(value: Value, tokens: number, size: number, isSwapped: boolean): Heads | null {
  const count = elements(value);
  let factor = 1;
  for (let source = value; ; ) {
    ({ value: source, factor } = throughFactors(source, factor));
    const heads = headsOf(source, tokens, size);
    if (heads !== null) {
      const [batch] = source.concreteShape!;
      const expected = new Int32Array(count);
      let at = 0;
      const from = (b: number, h: number, t: number, s: number) => ((b * tokens + t) * heads + h) * size + s;
      for (let b = 0; b < batch; b++) {
        for (let h = 0; h < heads; h++) {
          if (isSwapped) {
            for (let s = 0; s < size; s++) for (let t = 0; t < tokens; t++) expected[at++] = from(b, h, t, s);
          } else for (let t = 0; t < tokens; t++) for (let s = 0; s < size; s++) expected[at++] = from(b, h, t, s);
        }
      }
      if (isSame(origins(value, source), expected)) return { source, heads, factor };
    }
    const { producer } = source;
    if (!producer || !["Reshape", "Transpose"].includes(producer.opType)) return null;
    source = producer.input(0);
  }
}

/** Finds what `value`, the heads' results, is joined to. */
function joinHeads(graph: Graph, value: Value, tokens: number, size: number): Heads | null {
  let source = value;
  for (;;) {
    const heads = headsOf(source, tokens, size);
    if (heads !== null) {
      const [batch] = source.concreteShape!;
      const expected = new Int32Array(elements(value));
      let at = 0;
      for (let b = 0; b < batch; b++) {
        for (let t = 0; t < tokens; t++) {
          for (let h = 0; h < heads; h++) {
            for (let s = 0; s < size; s++) expected[at++] = ((b * heads + h) * tokens + t) * size + s;
          }
        }
      }
      if (isSame(origins(source, value), expected)) return { source, heads, factor: 1 };
    }
    const reader = soleConsumer(graph, source);
    if (!reader || !["Reshape", "Transpose"].includes(reader.opType)) return null;
    source = reader.output();
  }
}

/** Heads of a value shaped `[batch, tokens, heads * size]`, two or more; null for other shapes. */
function headsOf(value: Value, tokens: number, size: number): number | null {
  const dims = value.concreteShape;
  const heads = dims?.length === 3 && dims[1] === tokens ? dims[2] / size : 0;
  return Number.isInteger(heads) && heads > 1 ? heads : null;
}

/** Before multiplications with constants, and their product. */
function throughFactors(value: Value, factor: number): { value: Value; factor: number } {
  const { producer } = value;
  if (producer?.opType !== "Mul") return { value, factor };
  const index = producer.inputs.findIndex((input) => input?.initializer?.elementCount === 1);
  if (index < 0 || producer.input(1 - index).initializer) return { value, factor };
  return throughFactors(producer.input(1 - index), factor * producer.input(index).initializer!.toFloat32()[0]);
}

/** For each element of `value`, the position in `source` that it came from through Reshape, Transpose and factors. */
function origins(value: Value, source: Value): Int32Array {
  const start = throughFactors(value, 1).value;
  if (value === source || start === source) return Int32Array.from({ length: elements(source) }, (_, index) => index);
  const node = start.producer!;
  const before = origins(node.input(0), source);
  return node.opType === "Reshape" ? before : transpose(before, node.input(0).concreteShape!, node.ints("perm"));
}

function transpose(from: Int32Array, dims: readonly number[], permutation: readonly number[]): Int32Array {
  const strides = new Array<number>(dims.length).fill(1);
  for (let axis = dims.length - 2; axis >= 0; axis--) strides[axis] = strides[axis + 1] * dims[axis + 1];
  const result = new Int32Array(from.length);
  const position = new Array<number>(dims.length).fill(0);
  let offset = 0;
  for (let at = 0; at < result.length; at++) {
    result[at] = from[offset];
    for (let axis = permutation.length - 1; axis >= 0; axis--) {
      const source = permutation[axis];
      offset += strides[source];
      if (++position[axis] < dims[source]) break;
      offset -= dims[source] * strides[source];
      position[axis] = 0;
    }
  }
  return result;
}

function elements(value: Value): number {
  return value.concreteShape?.reduce((product, size) => product * size, 1) ?? 0;
}

function isSame(a: Int32Array, b: Int32Array): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}

function soleConsumer(graph: Graph, value: Value): Node | null {
  const [consumer, ...others] = value.consumers;
  return consumer && others.length === 0 && !graph.outputs.includes(value) ? consumer : null;
}
