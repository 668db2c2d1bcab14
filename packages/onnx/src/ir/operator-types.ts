import { type DataType, dataTypeOf } from "./data-type.ts";
import type { Node } from "./node.ts";

/** Operators whose outputs have one type whatever their inputs are. Source: the ONNX operator specification. */
const fixedTypes = new Map<string, DataType>([
  ...["Shape", "Size", "NonZero", "ArgMax", "ArgMin"].map((op) => [op, "int64"] as const),
  ...["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf"].map(
    (op) => [op, "bool"] as const,
  ),
]);

/** Operators whose output has the type of an input other than the first. */
const typeFromInput = new Map<string, number>([["Where", 1]]);

/**
 * Element type of a node's output from its inputs' types; null where it cannot be told.
 * Only the types: shapes come from running the graph.
 */
export function outputDataType(node: Node, index: number): DataType | null {
  const fixed = fixedTypes.get(node.opType);
  if (fixed) return fixed;
  switch (node.opType) {
    case "Cast":
      return dataTypeOf(node.int("to"), node.label);
    case "Constant":
      return node.tensor("value")?.dataType ?? (node.attributes.has("value_int") ? "int64" : "float32");
    case "ConstantOfShape":
      return node.tensor("value")?.dataType ?? "float32";
    case "QuantizeLinear":
    case "DynamicQuantizeLinear":
      if (node.opType === "DynamicQuantizeLinear" && index === 1) return "float32";
      return node.inputs[2]?.dataType ?? "uint8";
    case "DequantizeLinear":
      return node.inputs[1]?.dataType ?? "float32";
    case "TopK":
      if (index === 1) return "int64";
      break;
    case "Dropout":
    case "MaxPool":
      if (index === 1) return node.opType === "Dropout" ? "bool" : "int64";
      break;
    case "MatMulInteger":
    case "ConvInteger":
      return "int32";
    default:
  }
  return node.inputs[typeFromInput.get(node.opType) ?? 0]?.dataType ?? null;
}
