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
import { type PlacedPoint, type QuantizationPoint, withoutPlace } from "../quantizable/points.ts";
import { findQuantizable, type Quantizable } from "../quantizable/quantizable.ts";
import { layerEncoding, type WeightOptions } from "../quantizable/weights.ts";
import { fakeQuantize } from "../quantization/index.ts";
import { type TargetName, targetNamed } from "../targets/index.ts";

/** Name of the target whose points a simulation rounds at. */
export type Placement = TargetName;

export interface Simulation {
  model: Model;
  points: QuantizationPoint[];
  layers: Quantizable["layers"];
}

/** Inputs that the simulated graph adds, `[points]` each: a grid's step, its least and its greatest value. */
export const encodingInputs = { scale: "quad.scale", low: "quad.range_low", high: "quad.range_high" } as const;

export interface SimulationOptions extends WeightOptions {
  placement: Placement;
  /** Round phases as if they were activations, as no target does: for the study of what a fully 8-bit model suffers from. */
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

  const { activations, phases } = quantizable;
  const rounded = options.roundPhases ? { ...quantizable, activations: [...activations, ...phases] } : quantizable;
  const points = targetNamed(options.placement).points(rounded);
  const vectors = [encodingInputs.scale, encodingInputs.low, encodingInputs.high].map((name) =>
    split(graph, graph.addInput(name, "float32", [points.length]), points.length),
  );
  for (const [index, point] of points.entries()) {
    insert(graph, point, { scale: vectors[0][index], low: vectors[1][index], high: vectors[2][index] });
  }
  return { model, points: points.map(withoutPlace), layers: quantizable.layers };
}

function insert(graph: Graph, point: PlacedPoint, encoding: PointEncoding): void {
  const { name } = point;
  if (point.kind === "layer-input") {
    const { node, index } = point.edge;
    node.setInput(index, round(graph, node.input(index), encoding, name).rounded);
    return;
  }
  const { clip, rounded } = round(graph, point.value, encoding, name);
  graph.replace(point.value, rounded, { except: clip, formerName: `${name}_unrounded` });
}

interface PointEncoding {
  scale: Value;
  low: Value;
  high: Value;
}

/** The rounded form of a value, and the node that reads the unrounded one. */
function round(graph: Graph, value: Value, { scale, low, high }: PointEncoding, name: string) {
  const at = (operator: string) => ({ name: `quad/${name}/${operator}` });
  const clip = graph.addNode("Clip", [value, low, high], at("Clip"));
  const codes = graph.apply("Round", [graph.apply("Div", [clip.output(), scale], at("Div"))], at("Round"));
  const rounded = graph.apply("Mul", [codes, scale], at("Mul"));
  // Encodings are vectors of one, which would make a vector of a scalar.
  const isScalar = value.concreteShape?.length === 0;
  return { clip, rounded: isScalar ? graph.apply("Squeeze", [rounded], at("Squeeze")) : rounded };
}

/** `[n]` -> n vectors of one. */
function split(graph: Graph, vector: Value, count: number): Value[] {
  const sizes = graph.addInitializer("quad.split", Tensor.int64([count], new Array(count).fill(1)));
  const node: Node = graph.addNode("Split", [vector, sizes], { attributes: { axis: 0 }, outputCount: count });
  return node.outputs as Value[];
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
