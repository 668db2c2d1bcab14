import {
  cloneModel,
  computedSource,
  type Graph,
  type Model,
  type Node,
  Tensor,
  tensorByteSize,
  type Value,
} from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { findQuantizable, movedFrom, type Quantizable } from "../quantizable/quantizable.ts";
import { type BitWidth, type Encoding, fakeQuantize, weightEncoding } from "../quantization/index.ts";

/**
 * Where a target quantizes activations: `npu` every one of them (16 bits between the layers), `cpu` only the inputs of
 * layers that run on integer kernels; everything else stays float there.
 */
export type Placement = "npu" | "cpu";

/** One place where the simulated graph rounds an activation to a grid. */
export interface QuantizationPoint {
  /** Value name, or `LAYER#INPUT` for the input edge of a layer. */
  name: string;
  kind: "activation" | "layer-input";
  /** The observed value whose statistics hold here. */
  observed: string;
  /** For layer inputs: the layer's name. */
  layer?: string;
}

export interface Simulation {
  model: Model;
  points: QuantizationPoint[];
  layers: Quantizable["layers"];
}

/** Inputs that the simulated graph adds, `[points]` each: a grid's step, its least and its greatest value. */
export const encodingInputs = { scale: "quad.scale", low: "quad.range_low", high: "quad.range_high" } as const;

export interface SimulationOptions {
  placement: Placement;
  weightBits: BitWidth;
  /** How weight scales are found; per output channel in any case. */
  weightMethod: "min-max" | "mse";
  /** Round phases too, as no target does: for the study of what a fully 8-bit model suffers from. */
  roundPhases?: boolean;
}

/**
 * A prepared graph that quantizes as a compiled one would, with every activation's encoding as an input: one session then
 * serves every profile, every allocation of widths and every adapter. At a point, `x` becomes
 * `scale * round(clip(x, low, high) / scale)`, which is QuantizeLinear and DequantizeLinear on a grid that holds zero.
 * Weights are rounded to their grids per output channel; the base's weights do not depend on the adapter.
 */
export function buildSimulation(
  prepared: Model,
  slots: SlotsFile["components"][string],
  options: SimulationOptions,
): Simulation {
  const model = cloneModel(prepared);
  const { graph } = model;
  const quantizable = findQuantizable(model, slots);
  roundWeights(graph, quantizable, options);

  const points: QuantizationPoint[] = [];
  const insertions: ((encoding: PointEncoding) => void)[] = [];
  if (options.placement === "npu") {
    for (const value of [...quantizable.activations, ...(options.roundPhases ? quantizable.phases : [])]) {
      points.push({ name: value.name, kind: "activation", observed: value.name });
      insertions.push((encoding) => {
        const readers = value.uses;
        const rounded = round(graph, value, encoding, value.name);
        for (const { node, index } of readers) node.setInput(index, rounded);
        if (graph.outputs.includes(value)) replaceOutput(graph, value, rounded);
      });
    }
  }
  for (const layer of quantizable.layers) {
    for (const [position, { node, index }] of layer.activations.entries()) {
      const name = `${layer.name}#${position}`;
      points.push({ name, kind: "layer-input", observed: movedFrom(node.input(index)).name, layer: layer.name });
      insertions.push((encoding) => {
        node.setInput(index, round(graph, node.input(index), encoding, name));
      });
    }
  }
  const vectors = [encodingInputs.scale, encodingInputs.low, encodingInputs.high].map((name) =>
    split(graph, graph.addInput(name, "float32", [points.length]), points.length),
  );
  insertions.forEach((insert, index) => {
    insert({ scale: vectors[0][index], low: vectors[1][index], high: vectors[2][index] });
  });
  return { model, points, layers: quantizable.layers };
}

interface PointEncoding {
  scale: Value;
  low: Value;
  high: Value;
}

function round(graph: Graph, value: Value, { scale, low, high }: PointEncoding, name: string): Value {
  const at = (operator: string) => ({ name: `quad/${name}/${operator}` });
  const clipped = graph.apply("Clip", [value, low, high], at("Clip"));
  const codes = graph.apply("Round", [graph.apply("Div", [clipped, scale], at("Div"))], at("Round"));
  return graph.apply("Mul", [codes, scale], at("Mul"));
}

/** A graph output keeps its name; its unrounded form gets another. */
function replaceOutput(graph: Graph, value: Value, rounded: Value): void {
  const name = value.name;
  value.name = graph.claimName(`${name}_unrounded`);
  rounded.name = name;
  rounded.type = value.type;
  graph.outputs[graph.outputs.indexOf(value)] = rounded;
}

/** `[n]` -> n scalars. */
function split(graph: Graph, vector: Value, count: number): Value[] {
  const sizes = graph.addInitializer("quad.split", Tensor.int64([count], new Array(count).fill(1)));
  const node: Node = graph.addNode("Split", [vector, sizes], { attributes: { axis: 0 }, outputCount: count });
  return node.outputs as Value[];
}

/** Axis of a layer's output channels in its weight, as the node reads it. */
export function weightAxis(node: Node): number {
  if (node.opType === "Conv") return 0;
  return node.opType === "Gemm" && node.int("transB", 0) === 1 ? 0 : 1;
}

const knownEncodings = new WeakMap<Tensor, Map<string, Encoding>>();

/**
 * The encoding of the weight that `node` reads, symmetric and per output channel. Remembered as long as the tensor lives:
 * the search for scales takes a while, and clones of a graph share their tensors.
 */
export function layerEncoding(
  weight: Value,
  node: Node,
  { weightBits: bits, weightMethod: method }: Pick<SimulationOptions, "weightBits" | "weightMethod">,
): Encoding {
  const tensor = weight.initializer!;
  const axis = weightAxis(node);
  const known = knownEncodings.get(tensor) ?? new Map<string, Encoding>();
  knownEncodings.set(tensor, known);
  const key = `${bits} ${method} ${axis}`;
  let encoding = known.get(key);
  if (!encoding) {
    encoding = weightEncoding(tensor.toFloat32(), tensor.dims, { bits, axis, method });
    known.set(key, encoding);
  }
  return encoding;
}

function roundWeights(graph: Graph, { layers }: Quantizable, options: SimulationOptions): void {
  const done = new Set<Value>();
  for (const { nodes, weight } of layers) {
    if (!weight || done.has(weight)) continue;
    done.add(weight);
    const tensor = weight.initializer!;
    const encoding = layerEncoding(weight, nodes[0], options);
    // Computed when they are read: a large model's rounded weights would stay in memory for as long as the graph.
    const rounded = computedSource(tensorByteSize("float32", tensor.dims), () => {
      const { buffer, byteOffset, byteLength } = fakeQuantize(tensor.toFloat32(), [...tensor.dims], encoding);
      return new Uint8Array(buffer, byteOffset, byteLength);
    });
    const replacement = graph.addInitializer(`${weight.name}_rounded`, new Tensor("float32", tensor.dims, rounded));
    for (const node of nodes) {
      for (const [index, input] of node.inputs.entries()) if (input === weight) node.setInput(index, replacement);
    }
  }
}
