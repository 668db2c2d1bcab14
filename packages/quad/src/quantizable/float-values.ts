import type { Model, Node, Value } from "@quad-lora/onnx";
import { roleOf } from "../model/denoiser.ts";
import { movesData } from "./movements.ts";

/**
 * Values that sines and cosines are taken of (time steps, positions, sizes), back to the graph's inputs or the nearest layer.
 * @param order - the graph's nodes in execution order
 */
export function findPhases(order: readonly Node[], layerNodes: ReadonlySet<Node>): Set<Value> {
  const phases = new Set<Value>();
  for (const node of [...order].reverse()) {
    const isPeriodic = node.domain === "" && (node.opType === "Sin" || node.opType === "Cos");
    const leads = !layerNodes.has(node) && node.outputs.some((value) => value && phases.has(value));
    if (!isPeriodic && !leads) continue;
    for (const value of node.inputs) if (value && !value.initializer) phases.add(value);
  }
  return phases;
}

/**
 * Masks, positions, and what masks make of scores. A masked score is 10,000 below the others or as far as a float goes: on a
 * grid that reaches there the scores that count would all be the same.
 * @param order - the graph's nodes in execution order
 */
export function findMasked({ graph }: Model, order: readonly Node[]): Set<Value> {
  const masks = new Set<Value>(graph.inputs.filter(isMask));
  const masked = new Set<Value>();
  for (const node of order) {
    const inputs = node.inputs.filter((value) => value !== null && !value.initializer) as Value[];
    if (inputs.length > 0 && inputs.every((value) => masks.has(value))) {
      for (const value of node.outputs) if (value) masks.add(value);
    } else if (joinsMask(node, masks) || (movesData(node) && masked.has(node.input(0)))) {
      for (const value of node.outputs) if (value) masked.add(value);
    }
  }
  const positions = graph.inputs.filter(({ name }) => roleOf(name) === "positions");
  return new Set([...masks, ...masked, ...positions]);
}

function isMask({ name, dataType }: Value): boolean {
  return roleOf(name) === "mask" || dataType === "bool";
}

function joinsMask(node: Node, masks: ReadonlySet<Value>): boolean {
  return (
    node.domain === "" &&
    ["Add", "Sub", "Where"].includes(node.opType) &&
    node.inputs.some((value) => value !== null && masks.has(value))
  );
}

/**
 * Divisors that have a constant added lest they be zero, as linear attention has them. The constant is far below any grid's
 * step: rounded, it would be gone, and zero divided by zero.
 */
export function findGuardedDivisors(order: readonly Node[]): Set<Value> {
  const divisors = order.filter(({ domain, opType }) => domain === "" && opType === "Div").map((node) => node.input(1));
  return new Set(divisors.filter(({ producer }) => producer?.opType === "Add" && producer.inputs.some(isGuard)));
}

function isGuard(value: Value | null): boolean {
  const tensor = value?.initializer;
  return tensor?.elementCount === 1 && tensor.toFloat32()[0] > 0;
}
