import { InputError } from "@quad-lora/base";
import {
  type DataType,
  type Dimension,
  dataTypes,
  type Graph,
  type Model,
  memorySource,
  type Node,
  Tensor,
  tensorByteSize,
  type Value,
} from "@quad-lora/onnx";
import type { Slot } from "@quad-lora/runtime";
import { type FactorShape, factorDims } from "../factors/slot-layout.ts";
import type { Layer, LayerCall } from "../layers/find-layers.ts";

/** Rank of the adapter inputs: any rank at run time (0 is the base model), or one fixed rank with zero padding. */
export type SlotRank = { kind: "dynamic" } | { kind: "fixed"; rank: number };

/** What `slots.json` says of one graph: its slots and the input for their strengths. */
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
 * @throws InputError if the graph has such inputs already
 */
export function exposeGraph(
  model: Model,
  component: string,
  layers: readonly Layer[],
  rank: SlotRank,
): ExposedComponent {
  const { graph } = model;
  const rankDim = rank.kind === "fixed" ? rank.rank : "rank";
  const slots: Slot[] = [];
  const inputs = layers.map((layer) => {
    const slot = makeSlot(component, layer);
    slots.push(slot);
    const concrete = (shape: FactorShape) => (rank.kind === "fixed" ? factorDims(shape, rank.rank) : shape);
    // The branch computes in the layer's own type: no operator mixes float16 and float32.
    const dataType = weightType(layer);
    return {
      a: addInput(model, slot.inputA, dataType, concrete(slot.shapeA)),
      b: addInput(model, slot.inputB, dataType, concrete(slot.shapeB)),
    };
  });
  const strengthInput = `${component}.lora_strength`;
  const strength = strengthVariants(model, addInput(model, strengthInput, "float32", [rankDim]), component, rank);
  for (const [index, layer] of layers.entries()) {
    const strengthOf = (form: StrengthForm) => strength(weightType(layer), form);
    const isPlainConv = layer.kind === "conv" && layer.groups === 1;
    const factors = isPlainConv ? spareRank(model, layer, inputs[index], rank) : inputs[index];
    for (const call of layer.calls) {
      const branch = isPlainConv
        ? convBranch(model, layer, call, factors, strengthOf("channels"))
        : layer.kind === "conv"
          ? groupedConvBranch(model, layer, call, factors, strengthOf("vector"))
          : linearBranch(model, layer, call, factors, strengthOf("vector"));
      const sum = graph.addNode("Add", [call.output, branch], { name: `${branchName(layer, call)}/Add` });
      graph.replace(call.output, sum.output(), { except: sum });
    }
  }
  return { strengthInput, slots };
}

function weightType(layer: Layer): DataType {
  return layer.calls[0].weight.dataType!;
}

function addInput(model: Model, name: string, dataType: DataType, shape: readonly Dimension[]): Value {
  const value = model.graph.addInput(name, dataType, shape);
  if (value.name === name) return value;
  throw new InputError({
    what: "the graph has a value of this name already",
    file: model.file,
    where: name,
    fix: "Give the model as it was exported, without adapter inputs.",
  });
}

/** `[rank]`, or for convolutions `[rank, 1, 1]` with the spare rank of {@link spareRank}. */
type StrengthForm = "vector" | "channels";

/** The strengths in the element type and form that a layer needs; each is made once. */
function strengthVariants(model: Model, strength: Value, component: string, rank: SlotRank) {
  const { graph } = model;
  const made = new Map<string, Value>([["float32 vector", strength]]);
  const once = (key: string, make: () => Value) => {
    const value = made.get(key) ?? make();
    made.set(key, value);
    return value;
  };
  return (dataType: DataType, form: StrengthForm): Value => {
    const name = `${component}/lora_strength/${dataType}`;
    const attributes = { to: dataTypes[dataType].code };
    const vector = once(`${dataType} vector`, () =>
      graph.apply("Cast", [strength], { name: `${name}/Cast`, attributes }),
    );
    if (form === "vector") return vector;
    return once(`${dataType} channels`, () => {
      const spare = rank.kind === "dynamic" ? appendZeros(model, vector, dataType, [1], 0, `${name}/spare`) : vector;
      return graph.apply("Reshape", [spare, shapeConstant(graph, [-1, 1, 1])], { name: `${name}/channels/Reshape` });
    });
  };
}

/**
 * A convolution's factors with one rank of zeros behind their own, where the rank is dynamic. ONNX Runtime's Conv leaves
 * its output unwritten when there are no input channels (seen with 1.30 on CPU: whatever the memory held before), so that
 * rank 0 would not be the base model.
 */
function spareRank(model: Model, layer: Layer, { a, b }: Factors, rank: SlotRank): Factors {
  if (rank.kind === "fixed") return { a, b };
  const name = `/${layer.name.replaceAll(".", "/")}/lora`;
  const type = weightType(layer);
  return {
    a: appendZeros(model, a, type, [1, layer.inFeatures, ...layer.kernel!], 0, `${name}/down/spare`),
    b: appendZeros(model, b, type, [layer.outFeatures, 1, 1, 1], 1, `${name}/up/spare`),
  };
}

function appendZeros(
  { graph }: Model,
  value: Value,
  type: DataType,
  dims: number[],
  axis: number,
  name: string,
): Value {
  const name0 = `quad.zeros.${type}.${dims.join("x")}`;
  const zeros = new Tensor(type, dims, memorySource(new Uint8Array(tensorByteSize(type, dims))));
  const constant = [...graph.initializers].find((known) => known.name === name0) ?? graph.addInitializer(name0, zeros);
  return graph.apply("Concat", [value, constant], { name: `${name}/Concat`, attributes: { axis } });
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

function convBranch({ graph }: Model, layer: Layer, call: LayerCall, { a, b }: Factors, strength: Value): Value {
  const name = branchName(layer, call);
  const down = graph.addNode("Conv", [call.node.input(0), a], { name: `${name}/down/Conv` });
  copyGeometry(call.node, down);
  const scaled = graph.apply("Mul", [down.output(), strength], { name: `${name}/strength/Mul` });
  return graph.apply("Conv", [scaled, b], { name: `${name}/up/Conv`, attributes: { kernel_shape: [1, 1] } });
}

/**
 * A grouped convolution's low-rank weight `B A` mixes ranks across groups, so no pair of convolutions computes it:
 * the product is formed first and convolved like the layer's own weight.
 */
function groupedConvBranch(model: Model, layer: Layer, call: LayerCall, { a, b }: Factors, strength: Value): Value {
  const { graph } = model;
  const name = branchName(layer, call);
  const { outFeatures, inFeatures, groups, kernel } = layer;
  // A reshape cannot infer the rank of an empty tensor: Flatten keeps the rank axis whatever it is.
  const up = graph.apply("Flatten", [b], { name: `${name}/up/Flatten`, attributes: { axis: 1 } });
  const scaled = graph.apply("Mul", [up, strength], { name: `${name}/strength/Mul` });
  const down = graph.apply("Flatten", [a], { name: `${name}/down/Flatten`, attributes: { axis: 1 } });
  const product = graph.apply("MatMul", [scaled, down], { name: `${name}/MatMul` });
  const weightShape = shapeConstant(graph, [outFeatures, inFeatures / groups!, ...kernel!]);
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

function shapeConstant(graph: Graph, dims: number[]): Value {
  return graph.addInitializer(`quad.shape.${dims.join("x").replaceAll("-", "_")}`, Tensor.int64([dims.length], dims));
}
