import { computedSource, type Graph, type Model, Tensor, tensorByteSize, tensorType } from "@quad-lora/onnx";

/** The code of float32 among ONNX's element types, as Cast's attribute has it, and of float16. */
const codes = { float32: 1, float16: 10 } as const;

/**
 * Makes a float16 graph compute in float32, inputs and outputs too: what quantization rounds is exact then, and integer kernels
 * give float32. Weights are widened when they are read. Graphs without float16 stay as they are. Edits `model` in place.
 */
export function computeInFloat32({ graph }: Model): void {
  widen(graph);
}

function widen(graph: Graph): void {
  for (const value of graph.ownValues()) {
    if (value.initializer) value.initializer = widened(value.initializer);
    const { type } = value;
    if (type?.kind === "tensor" && type.dataType === "float16") value.type = tensorType("float32", type.shape);
  }
  for (const node of graph.nodes) {
    for (const [name, attribute] of node.attributes) {
      if (attribute.kind === "tensor") node.attributes.set(name, { ...attribute, value: widened(attribute.value) });
      const isType = attribute.kind === "int" && (name === "to" || name === "dtype");
      if (isType && Number(attribute.value) === codes.float16) {
        node.attributes.set(name, { kind: "int", value: codes.float32 });
      }
    }
    for (const subgraph of node.subgraphs) widen(subgraph);
  }
}

function widened(tensor: Tensor): Tensor {
  if (tensor.dataType !== "float16") return tensor;
  const { dims } = tensor;
  const source = computedSource(tensorByteSize("float32", dims), () => {
    const { buffer, byteOffset, byteLength } = tensor.toFloat32();
    return new Uint8Array(buffer, byteOffset, byteLength);
  });
  return new Tensor("float32", dims, source);
}
