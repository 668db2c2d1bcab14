import { type Model, type Node, Tensor, type Value } from "@quad/onnx";
import type { Slot } from "@quad/runtime";
import type { Layer, LayerCall } from "../layers/find-layers.ts";

/** Rank of the adapter inputs: any rank at run time (0 is the base model), or one fixed rank with zero padding. */
export type SlotRank = { kind: "dynamic" } | { kind: "fixed"; rank: number };

export interface ExposedComponent {
  /** Graph input `[rank]`: one strength for every rank, shared by all slots. */
  strengthInput: string;
  slots: Slot[];
}

/**
 * Gives the chosen layers low-rank branches whose factors are graph inputs: `y = W x + b + B (strength * (A x))`
 * (the paper's section on LoRA as input). The branch reads the tensor the layer reads; consumers of the layer's output
 * read the sum. Edits `model` in place.
 * @param component - prefix of the input names, `unet`
 */
export function exposeGraph(model: Model, component: string, layers: readonly Layer[], rank: SlotRank): ExposedComponent {
  const { graph } = model;
  const rankDim = rank.kind === "fixed" ? rank.rank : "rank";
  const slots: Slot[] = [];
  const inputs = layers.map((layer) => {
    const slot = makeSlot(component, layer);
    slots.push(slot);
    const concrete = (shape: Slot["shapeA"]) => shape.map((dim) => (dim === "rank" ? rankDim : dim));
    return {
      a: graph.addInput(slot.inputA, "float32", concrete(slot.shapeA)),
      b: graph.addInput(slot.inputB, "float32", concrete(slot.shapeB)),
    };
  });
  const strengthInput = `${component}.lora_strength`;
  const strength = graph.addInput(strengthInput, "float32", [rankDim]);
  const perChannel = layers.some(({ kind }) => kind === "conv")
    ? // 0 copies the dimension: unlike -1 it also holds for rank 0.
      graph.apply("Reshape", [strength, shapeConstant(model, [0, 1, 1])], { name: `${component}/lora_strength/channels` })
    : strength;
  for (const [index, layer] of layers.entries()) {
    for (const call of layer.calls) {
      const branch =
        layer.kind === "conv"
          ? convBranch(model, layer, call, inputs[index], perChannel)
          : linearBranch(model, layer, call, inputs[index], strength);
      const sum = graph.addNode("Add", [call.output, branch], { name: `${branchName(layer, call)}/Add` });
      graph.replace(call.output, sum.output(), sum);
    }
  }
  return { strengthInput, slots };
}

function makeSlot(component: string, layer: Layer): Slot {
  const { name, kind, inFeatures, outFeatures, kernel, groups } = layer;
  const isConv = kind === "conv";
  return {
    name,
    kind,
    inFeatures,
    outFeatures,
    ...(kernel ? { kernel: [...kernel] as [number, number] } : {}),
    inputA: `${component}.${name}.lora_A`,
    shapeA: isConv ? ["rank", inFeatures / groups!, ...kernel!] : [inFeatures, "rank"],
    inputB: `${component}.${name}.lora_B`,
    shapeB: isConv ? [outFeatures, "rank", 1, 1] : ["rank", outFeatures],
  };
}

function branchName(layer: Layer, call: LayerCall): string {
  const index = layer.calls.indexOf(call);
  return `/${layer.name.replaceAll(".", "/")}/lora${index > 0 ? `_${index}` : ""}`;
}

interface Factors {
  a: Value;
  b: Value;
}

function linearBranch({ graph }: Model, layer: Layer, call: LayerCall, { a, b }: Factors, strength: Value): Value {
  const name = branchName(layer, call);
  const down = graph.apply("MatMul", [call.node.input(0), a], { name: `${name}/down/MatMul` });
  const scaled = graph.apply("Mul", [down, strength], { name: `${name}/strength/Mul` });
  return graph.apply("MatMul", [scaled, b], { name: `${name}/up/MatMul` });
}

function convBranch(model: Model, layer: Layer, call: LayerCall, factors: Factors, strength: Value): Value {
  if (layer.groups! > 1) return groupedConvBranch(model, layer, call, factors, strength);
  const { graph } = model;
  const name = branchName(layer, call);
  const down = graph.addNode("Conv", [call.node.input(0), factors.a], { name: `${name}/down/Conv` });
  copyGeometry(call.node, down);
  const scaled = graph.apply("Mul", [down.output(), strength], { name: `${name}/strength/Mul` });
  return graph.apply("Conv", [scaled, factors.b], {
    name: `${name}/up/Conv`,
    attributes: { kernel_shape: [1, 1] },
  });
}

/**
 * A grouped convolution's low-rank weight `B A` mixes ranks across groups, so no pair of convolutions computes it:
 * the product is formed first and convolved like the layer's own weight.
 */
function groupedConvBranch(model: Model, layer: Layer, call: LayerCall, { a, b }: Factors, strength: Value): Value {
  const { graph } = model;
  const name = branchName(layer, call);
  const { outFeatures, inFeatures, groups, kernel } = layer;
  const scaled = graph.apply("Mul", [b, strength], { name: `${name}/strength/Mul` });
  // A reshape cannot infer the rank of an empty tensor: Flatten keeps the rank axis whatever it is.
  const up = graph.apply("Flatten", [scaled], { name: `${name}/up/Flatten`, attributes: { axis: 1 } });
  const down = graph.apply("Flatten", [a], { name: `${name}/down/Flatten`, attributes: { axis: 1 } });
  const product = graph.apply("MatMul", [up, down], { name: `${name}/MatMul` });
  const weightShape = shapeConstant(model, [outFeatures, inFeatures / groups!, ...kernel!]);
  const weight = graph.apply("Reshape", [product, weightShape], { name: `${name}/weight/Reshape` });
  const conv = graph.addNode("Conv", [call.node.input(0), weight], { name: `${name}/Conv` });
  copyGeometry(call.node, conv);
  conv.attributes.set("group", { kind: "int", value: groups! });
  return conv.output();
}

/** Strides, pads and dilations belong to the down projection; the up projection is 1x1. */
function copyGeometry(from: Node, to: Node): void {
  for (const key of ["kernel_shape", "strides", "pads", "dilations", "auto_pad"]) {
    const attribute = from.attributes.get(key);
    if (attribute) to.attributes.set(key, attribute);
  }
}

function shapeConstant({ graph }: Model, dims: number[]): Value {
  return graph.addInitializer(`quad.shape.${dims.join("x").replaceAll("-", "_")}`, Tensor.int64([dims.length], dims));
}
