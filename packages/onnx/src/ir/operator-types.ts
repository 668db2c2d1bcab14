import { type DataType, dataTypeOf } from "./data-type.ts";
import type { Node } from "./node.ts";

/** Operators whose outputs have one type whatever their inputs are. Source: the ONNX operator specification. */
const fixedTypes = new Map<string, DataType>([
  ...["Shape", "Size", "NonZero", "ArgMax", "ArgMin", "NonMaxSuppression"].map((op) => [op, "int64"] as const),
  ...["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf"].map(
    (op) => [op, "bool"] as const,
  ),
]);

/** Operators whose output has the type of an input other than the first. */
const typeFromInput = new Map<string, number>([
  ["Where", 1],
  ["CastLike", 1],
  ["OneHot", 2],
  ["QLinearConv", 7],
  ["QLinearMatMul", 7],
]);

/** Operators that make sequences or optionals: values without an element type or shape of their own. */
const sequenceMakers = new Set([
  "SequenceConstruct",
  "SequenceEmpty",
  "SequenceInsert",
  "SequenceErase",
  "SequenceMap",
  "SplitToSequence",
  "Optional",
]);

/** Whether the node's outputs are something else than tensors. */
export function makesSequence(node: Node): boolean {
  return node.domain === "" && sequenceMakers.has(node.opType);
}

const constantTypes = new Map<string | undefined, DataType>([
  ["value_float", "float32"],
  ["value_floats", "float32"],
  ["value_int", "int64"],
  ["value_ints", "int64"],
  ["value_string", "string"],
  ["value_strings", "string"],
]);

/** Operators that name their output's type in an attribute; without it, it is this one (null: that of the first input). */
const typeFromAttribute = new Map<string, readonly [attribute: string, fallback: DataType | null]>([
  ["RandomNormal", ["dtype", "float32"]],
  ["RandomUniform", ["dtype", "float32"]],
  ["RandomNormalLike", ["dtype", null]],
  ["RandomUniformLike", ["dtype", null]],
  ["Bernoulli", ["dtype", null]],
  ["EyeLike", ["dtype", null]],
  ["Multinomial", ["dtype", "int32"]],
]);

/**
 * Element type of a node's output from its inputs' types; null where it cannot be told.
 * Only the types: shapes come from running the graph.
 */
export function outputDataType(node: Node, index: number): DataType | null {
  if (node.domain !== "" && node.domain !== "com.microsoft") return null;
  const fixed = fixedTypes.get(node.opType);
  if (fixed) return fixed;
  const [attribute, fallback] = typeFromAttribute.get(node.opType) ?? [];
  if (attribute && node.attributes.has(attribute)) return dataTypeOf(node.int(attribute), node.label);
  if (fallback) return fallback;
  switch (node.opType) {
    case "Cast":
      return dataTypeOf(node.int("to"), node.label);
    case "Constant":
      return node.tensor("value")?.dataType ?? constantTypes.get([...node.attributes.keys()][0]) ?? null;
    case "ConstantOfShape":
      return node.tensor("value")?.dataType ?? "float32";
    case "QuantizeLinear":
    case "DynamicQuantizeLinear":
      if (node.opType === "DynamicQuantizeLinear" && index === 1) return "float32";
      if (node.int("output_dtype", 0) !== 0) return dataTypeOf(node.int("output_dtype"), node.label);
      return node.inputs[2] ? node.inputs[2].dataType : "uint8";
    case "DequantizeLinear":
      return node.inputs[1]?.dataType ?? "float32";
    case "TopK":
      if (index === 1) return "int64";
      break;
    case "Dropout":
    case "MaxPool":
      if (index === 1) return node.opType === "Dropout" ? "bool" : "int64";
      break;
    case "If": {
      const [branch] = node.subgraphs;
      return branch?.outputs[index]?.dataType ?? null;
    }
    case "Loop":
    case "Scan":
      return null;
    case "Unique":
      if (index > 0) return "int64";
      break;
    case "LayerNormalization":
      if (index > 0) return "float32";
      break;
    case "MatMulIntegerToFloat":
    case "DynamicQuantizeMatMul":
      return "float32";
    case "MatMulInteger":
    case "ConvInteger":
      return "int32";
    default:
  }
  return node.inputs[typeFromInput.get(node.opType) ?? 0]?.dataType ?? null;
}
