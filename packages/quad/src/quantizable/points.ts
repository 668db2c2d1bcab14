import type { Use, Value } from "@quad-lora/onnx";
import { movedFrom } from "./movements.ts";
import type { Quantizable, QuantizableLayer } from "./quantizable.ts";

/** One place where a graph rounds an activation to a grid. */
export interface QuantizationPoint {
  /** Value name, or that of a layer's input edge, see {@link layerInputPoint}. */
  name: string;
  kind: "activation" | "layer-input";
  /** The observed value whose statistics hold here. */
  observed: string;
  /** For layer inputs: the layer's name. */
  layer?: string;
}

/** A point with its place in one graph: all that reads a value, or the one edge into a layer. */
export type PlacedPoint = QuantizationPoint &
  ({ kind: "activation"; value: Value } | { kind: "layer-input"; edge: Use });

/**
 * How the point on a layer's input edge is called, `LAYER#INPUT`: profiles, the simulation and every compiled graph use this name.
 * @param position - index among the layer's activations: over its calls, or 0 and 1 for a product of two
 */
export function layerInputPoint(layer: string, position: number): string {
  return `${layer}#${position}`;
}

/** The layer on whose input edge a point of this name lies; null where the point is a value. */
export function layerOfPoint(name: string): string | null {
  return /^(.*)#\d+$/.exec(name)?.[1] ?? null;
}

/** Points at values: every reader gets the rounded value. */
export function valuePoints(values: readonly Value[]): PlacedPoint[] {
  return values.map((value) => ({ name: value.name, kind: "activation", observed: value.name, value }));
}

/** Points at the inputs of layers, in the layers' order. */
export function layerInputPoints(layers: readonly QuantizableLayer[]): PlacedPoint[] {
  return layers.flatMap((layer) =>
    layer.activations.map((edge, position) => ({
      name: layerInputPoint(layer.name, position),
      kind: "layer-input" as const,
      observed: movedFrom(edge.node.input(edge.index)).name,
      layer: layer.name,
      edge,
    })),
  );
}

/** The point alone, as files and profiles know it. */
export function withoutPlace({ name, kind, observed, layer }: PlacedPoint): QuantizationPoint {
  return { name, kind, observed, ...(layer === undefined ? {} : { layer }) };
}

/** Points wherever a graph can round: at every activation, and at layers' inputs, which may take fewer bits. */
export function allPoints({ activations, layers }: Quantizable): PlacedPoint[] {
  return [...valuePoints(activations), ...layerInputPoints(layers)];
}
