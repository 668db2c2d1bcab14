import type { Node, Value } from "@quad-lora/onnx";

const movements = new Set([
  ...["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather", "Expand", "Identity"],
  ...["Tile", "DepthToSpace", "SpaceToDepth"],
]);

/** Whether a node's outputs hold elements of its first input and nothing else. */
export function movesData(node: Node): boolean {
  if (node.domain !== "") return false;
  if (node.opType === "Resize") return node.string("mode", "nearest") === "nearest";
  return movements.has(node.opType);
}

/** The value whose elements `value` consists of: before reshapes, transposes, slices and the like. */
export function movedFrom(value: Value): Value {
  let source = value;
  while (source.producer && movesData(source.producer)) source = source.producer.input(0);
  return source;
}
