import type { Model } from "@quad-lora/onnx";

/**
 * Gives every weight zero points of its own, where graphs store what is equal once. With `session.x64quantprecision`, which x64
 * processors without VNNI need, ONNX Runtime 1.30 makes weights unsigned one by one together with their zero points, and
 * refuses a graph in which two weights share them. Edits `model` in place.
 */
export function ownZeroPoints({ graph }: Model): void {
  const taken = new Set<string>();
  for (const node of graph.sorted()) {
    const zeroPoint = node.inputs[2];
    if (node.opType !== "DequantizeLinear" || !node.input(0).initializer || !zeroPoint?.initializer) continue;
    if (taken.has(zeroPoint.name)) node.setInput(2, graph.addInitializer(zeroPoint.name, zeroPoint.initializer));
    else taken.add(zeroPoint.name);
  }
}
