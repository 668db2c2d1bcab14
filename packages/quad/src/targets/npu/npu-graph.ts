import type { Model, Value } from "@quad-lora/onnx";
import { movesData } from "../../quantizable/movements.ts";
import { layerInputPoint } from "../../quantizable/points.ts";
import type { Quantizable } from "../../quantizable/quantizable.ts";
import type { Encoding } from "../../quantization/index.ts";
import type { PlacementTools } from "../target.ts";

/**
 * Every activation is quantized where it is made, and again at the input of a layer that takes fewer bits. Operators that
 * only move data have pairs of the same encoding on both sides, as NPU compilers expect them. Edits `model` in place.
 */
export function placeForNpu(
  { graph }: Model,
  { activations, layers }: Quantizable,
  { codes, weights, encodingOf }: PlacementTools,
): void {
  /** What a quantized value consists of. */
  const encodings = new Map<Value, Encoding>();
  const round = (value: Value, encoding: Encoding, name: string): Value => {
    const rounded = codes.dequantize(codes.quantize(value, encoding, name), encoding, name);
    encodings.set(rounded, encoding);
    return rounded;
  };
  const roundEverywhere = (value: Value, encoding: Encoding) => {
    const { name } = value;
    const rounded = round(value, encoding, name);
    const quantize = rounded.producer!.input(0).producer!;
    graph.replace(value, rounded, { except: quantize, formerName: `${name}_unrounded` });
  };
  for (const value of activations) roundEverywhere(value, encodingOf(value.name));
  for (const node of graph.sorted()) {
    const moved = movesData(node) ? encodings.get(node.input(0)) : undefined;
    if (!moved) continue;
    for (const value of node.outputs) if (value) roundEverywhere(value, moved);
  }
  for (const { name, activations: inputs, weight, nodes } of layers) {
    for (const [position, { node, index }] of inputs.entries()) {
      const point = layerInputPoint(name, position);
      const encoding = encodingOf(point);
      const value = node.input(index);
      // A grid's own values stay what they are.
      if (!isSame(encodings.get(value), encoding)) node.setInput(index, round(value, encoding, point));
    }
    if (!weight) continue;
    const values = codes.dequantize(weights.codes(weight, nodes[0]), weights.encoding(weight, nodes[0]), weight.name);
    for (const node of nodes) {
      for (const [index, input] of node.inputs.entries()) if (input === weight) node.setInput(index, values);
    }
  }
}

function isSame(a: Encoding | undefined, b: Encoding): boolean {
  return a?.bits === b.bits && a.scale[0] === b.scale[0] && a.zeroPoint[0] === b.zeroPoint[0];
}
