import type { Graph, Model, Node, Value } from "@quad-lora/onnx";
import { layerInputPoint } from "../../quantizable/points.ts";
import type { Quantizable, QuantizableLayer } from "../../quantizable/quantizable.ts";
import type { WeightMatrix } from "../../quantizable/weight-codes.ts";
import type { Encoding } from "../../quantization/index.ts";
import type { PlacementTools } from "../target.ts";
import { fuseAttention } from "./attention.ts";
import { joinPlanes, planeBias, planeEncodings, splitIntoPlanes } from "./byte-planes.ts";
import { columnsOf, columnsShape, isPlainConv, rowsAsImage } from "./convolution-columns.ts";

const contrib = "com.microsoft";

/**
 * Layers become products of integers with float results: of 8-bit codes where narrow, of the two bytes of 16-bit codes where
 * wide. Products of two activations do so where both inputs are narrow; all else stays float. Edits `model` in place.
 */
export function placeForCpu(model: Model, { layers }: Quantizable, tools: PlacementTools): void {
  const { narrowLayers } = tools;
  const placement = new CpuPlacement(model.graph, tools);
  const narrowNodes = new Set(layers.filter(({ name }) => narrowLayers.has(name)).flatMap(({ nodes }) => nodes));
  fuseAttention(model, (product) => !narrowNodes.has(product));
  for (const layer of layers) {
    const isNarrow = narrowLayers.has(layer.name);
    if (layer.kind === "product") {
      if (isNarrow) placement.narrowProduct(layer);
      continue;
    }
    for (const [position, node] of layer.nodes.entries()) {
      const point = layerInputPoint(layer.name, position);
      if (node.opType === "Conv" && !isPlainConv(node)) placement.floatLayer(node, layer.weight!, point);
      else if (isNarrow) placement.narrowLayer(node, layer.weight!, point);
      else if (tools.weights.bits === 4 && node.opType !== "Conv") placement.blockLayer(node, layer.weight!);
      else placement.wideLayer(node, layer.weight!, point);
    }
  }
}

class CpuPlacement {
  readonly #graph: Graph;
  readonly #tools: PlacementTools;
  /** Quantized forms of values, by encoding: layers that read the same share them. */
  readonly #quantized = new Map<Value, Map<string, Value>>();

  constructor(graph: Graph, tools: PlacementTools) {
    this.#graph = graph;
    this.#tools = tools;
  }

  narrowLayer(node: Node, weight: Value, point: string): void {
    const { codes, weights, encodingOf } = this.#tools;
    const encoding = encodingOf(point);
    const quantized = this.#once(node.input(0), encoding, () => codes.quantize(node.input(0), encoding, point));
    const { bias, target } = takeBias(node);
    const left = node.opType === "Conv" ? columnsOf(this.#graph, node, quantized, [encoding.zeroPoint[0]]) : quantized;
    const product = this.#product(node, left, encoding, weights.matrix(weight, node), bias);
    this.#replace(target, node.opType === "Conv" ? rowsAsImage(this.#graph, node, product) : product);
  }

  wideLayer(node: Node, weight: Value, point: string): void {
    const { codes, weights, encodingOf } = this.#tools;
    const graph = this.#graph;
    const encoding = encodingOf(point);
    const value = node.input(0);
    const planes = this.#once(value, encoding, () => splitIntoPlanes(graph, codes, value, encoding, point));
    const { high, low } = planeEncodings(encoding);
    const isConv = node.opType === "Conv";
    const left = isConv ? columnsOf(graph, node, planes, [high.zeroPoint[0], low.zeroPoint[0]]) : planes;
    const { bias, target } = takeBias(node);
    const planesBias = weights.vector(`${node.output().name}_plane_bias`, weight, node, () =>
      planeBias(encoding, bias?.initializer?.toFloat32() ?? null, weights.columnSums(weight, node)),
    );
    // Both planes with one scale and one zero point: joining and the bias make up for it.
    const common = { ...high, scale: low.scale };
    const product = this.#product(node, left, common, weights.matrix(weight, node), planesBias);
    const dims = isConv ? columnsShape(node) : node.output().concreteShape!;
    const joined = joinPlanes(graph, product, dims, `${node.name}/join`);
    this.#replace(target, isConv ? rowsAsImage(graph, node, joined) : joined);
  }

  /** Floats by 4-bit weights, which the integer kernels would need as 8-bit ones. */
  blockLayer(node: Node, weight: Value): void {
    const { weights } = this.#tools;
    const { codes, scale, rows, columns, blockSize } = weights.blocks(weight, node);
    const { bias, target } = takeBias(node);
    const product = this.#graph.apply("MatMulNBits", [node.input(0), codes, scale, null, null, bias], {
      name: `${node.name}/MatMulNBits`,
      domain: contrib,
      // Accuracy level 1 multiplies float32; the default may round activations to 8 bits by blocks.
      attributes: { K: rows, N: columns, bits: weights.bits, block_size: blockSize, accuracy_level: 1 },
    });
    this.#replace(target, product);
  }

  /** What has no integer kernel runs on floats that have been rounded; its weight is integer in the file and in memory. */
  floatLayer(node: Node, weight: Value, point: string): void {
    const { codes, weights, encodingOf } = this.#tools;
    node.setInput(0, this.#round(node.input(0), encodingOf(point), point));
    node.setInput(1, codes.dequantize(weights.codes(weight, node), weights.encoding(weight, node), weight.name));
  }

  narrowProduct({ name, nodes: [node] }: QuantizableLayer): void {
    const { codes, encodingOf } = this.#tools;
    const graph = this.#graph;
    const points = [0, 1].map((index) => layerInputPoint(name, index));
    const [left, right] = points.map(encodingOf);
    const [a, b] = [left, right].map((encoding, index) =>
      this.#once(node.input(index), encoding, () => codes.quantize(node.input(index), encoding, points[index])),
    );
    // Attention scales its scores: the product's own scale takes that in.
    const { factor, target } = takeFactor(node);
    const scaled: Encoding = { ...left, scale: Float32Array.of(left.scale[0] * factor) };
    const product = graph.apply(
      "MatMulIntegerToFloat",
      [a, b, codes.scale(scaled), codes.scale(right), codes.zeroPoint(left), codes.zeroPoint(right)],
      { name: `${node.name}/MatMulIntegerToFloat`, domain: contrib },
    );
    this.#replace(target, product);
  }

  #product(node: Node, left: Value, encoding: Encoding, right: WeightMatrix, bias: Value | null): Value {
    const { codes } = this.#tools;
    return this.#graph.apply(
      "MatMulIntegerToFloat",
      [left, right.codes, codes.scale(encoding), right.scale, codes.zeroPoint(encoding), null, bias],
      { name: `${node.name}/MatMulIntegerToFloat`, domain: contrib },
    );
  }

  #round(value: Value, encoding: Encoding, name: string): Value {
    const { codes } = this.#tools;
    return codes.dequantize(codes.quantize(value, encoding, name), encoding, name);
  }

  #once(value: Value, { bits, scale, zeroPoint }: Encoding, make: () => Value): Value {
    let forms = this.#quantized.get(value);
    if (!forms) this.#quantized.set(value, (forms = new Map()));
    const key = [bits, scale[0], zeroPoint[0]].join();
    const made = forms.get(key) ?? make();
    forms.set(key, made);
    return made;
  }

  #replace(from: Value, to: Value): void {
    // What reads a layer's input may be a layer that comes later: its quantized forms stay right.
    const forms = this.#quantized.get(from);
    if (forms) this.#quantized.set(to, forms);
    this.#graph.replace(from, to, { keepName: true });
  }
}

/** A layer's bias as a vector, if it can be added inside the product, and the value that the product then replaces. */
function takeBias(node: Node): { bias: Value | null; target: Value } {
  const output = node.output();
  if (node.opType === "Conv") return { bias: node.inputs[2] ?? null, target: output };
  const columns = output.concreteShape!.at(-1)!;
  const isVector = (value: Value | null) => value?.initializer?.dims.join() === String(columns);
  if (node.opType === "Gemm") {
    const bias = node.inputs[2] ?? null;
    if (!bias || (isVector(bias) && node.float("beta", 1) === 1)) return { bias, target: output };
    throw new Error(`${node.label}: its bias is not a vector`);
  }
  const reader = soleReader(output, "Add");
  const bias = reader?.node.inputs[1 - reader.index];
  return bias && isVector(bias) ? { bias, target: reader.node.output() } : { bias: null, target: output };
}

/** A positive constant that the product's result is multiplied by and nothing else reads, and what is then replaced. */
function takeFactor(node: Node): { factor: number; target: Value } {
  const reader = soleReader(node.output(), "Mul");
  const tensor = reader?.node.inputs[1 - reader.index]?.initializer;
  if (tensor?.elementCount === 1 && tensor.dims.length <= 1) {
    const [factor] = tensor.toFloat32();
    if (factor > 0) return { factor, target: reader!.node.output() };
  }
  return { factor: 1, target: node.output() };
}

function soleReader(value: Value, opType: string): { node: Node; index: number } | null {
  const [reader, ...others] = value.uses;
  if (!reader || others.length > 0 || reader.node.opType !== opType) return null;
  return reader.node.graph?.outputs.includes(value) ? null : reader;
}
