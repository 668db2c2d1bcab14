import { extractModel } from "../ir/clone.ts";
import type { Graph } from "../ir/graph.ts";
import type { Model } from "../ir/model.ts";
import type { Node } from "../ir/node.ts";
import { makesSequence, outputDataType } from "../ir/operator-types.ts";
import { isNumeric, Tensor } from "../ir/tensor.ts";
import { tensorType, type Value } from "../ir/value.ts";
import { runModel } from "../ort/run.ts";
import { deadCodeElimination } from "./dead-code.ts";
import { isDeterministic, type Pass } from "./pass.ts";

/** What {@link constantFolding} leaves alone. */
export interface FoldingOptions {
  /** Results above this many bytes stay computed, so that a small expression does not become a large file. */
  maxBytes?: number;
  /** Operators to leave alone even when their inputs are constant, such as DequantizeLinear of a weight. */
  keep?: ReadonlySet<string>;
}

/** Replaces what depends on constants alone by its value, computed by ONNX Runtime. */
export function constantFolding(options: FoldingOptions = {}): Pass {
  return {
    name: "constant-folding",
    description: "Computes what depends on constants alone, once, with ONNX Runtime.",
    async run(model) {
      const lifted = liftConstants(model.graph);
      return lifted + (await foldOnce(model, options));
    },
  };
}

/** Turns Constant nodes into initializers of the same name. */
function liftConstants(graph: Graph): number {
  let count = 0;
  for (const node of [...graph.nodes]) {
    for (const subgraph of node.subgraphs) count += liftConstants(subgraph);
    if (node.opType !== "Constant" || node.domain !== "") continue;
    const tensor = constantTensor(node);
    if (!tensor || graph.outputs.includes(node.output())) continue;
    const value = node.output();
    graph.remove(node);
    value.producer = null;
    value.initializer = tensor;
    value.type = tensorType(tensor.dataType, tensor.dims);
    graph.initializers.add(value);
    count++;
  }
  return count;
}

function constantTensor(node: Node): Tensor | null {
  const attribute = [...node.attributes][0];
  if (!attribute) return null;
  const [name, { kind }] = attribute;
  if (name === "value") return node.tensor(name);
  if (kind === "float") return Tensor.scalar(node.float(name));
  if (kind === "int") return Tensor.int64([], [node.int(name)]);
  if (kind === "ints") return Tensor.int64([node.ints(name).length], node.ints(name));
  const floats = node.attributes.get(name);
  return floats?.kind === "floats" ? Tensor.float32([floats.value.length], floats.value) : null;
}

async function foldOnce(model: Model, options: FoldingOptions): Promise<number> {
  const { graph } = model;
  const constant = new Set<Value>();
  for (const value of graph.initializers) if (!graph.inputs.includes(value)) constant.add(value);
  const foldable = new Set<Node>();
  for (const node of graph.sorted()) {
    const isFoldable =
      isDeterministic(node) &&
      hasPlainOutputs(node) &&
      !options.keep?.has(node.opType) &&
      node.subgraphs.length === 0 &&
      (node.inputs.length > 0 || node.opType === "Constant") &&
      node.inputs.every((value) => !value || constant.has(value));
    if (!isFoldable) continue;
    foldable.add(node);
    for (const output of node.outputs) if (output) constant.add(output);
  }
  const results: Value[] = [];
  for (const node of foldable) {
    for (const output of node.outputs) {
      if (!output || graph.outputs.includes(output)) continue;
      if (output.consumers.some((reader) => !foldable.has(reader))) results.push(output);
    }
  }
  if (results.length === 0) return 0;
  const computed = await compute(model, results);
  let count = 0;
  for (const value of results) {
    const tensor = computed.get(value.name);
    if (!tensor) continue;
    if (tensor.byteLength > (options.maxBytes ?? Number.POSITIVE_INFINITY) && isGrown(value, tensor)) continue;
    // A result may be a view of a large buffer or of memory that ORT reuses.
    const copy = tensor.strings ? tensor : new Tensor(tensor.dataType, tensor.dims, own(tensor.bytes()));
    const folded = graph.addInitializer(value.name, copy);
    folded.type = tensorType(copy.dataType, copy.dims);
    graph.replace(value, folded);
    count++;
  }
  if (count > 0) await deadCodeElimination.run(model);
  return count;
}

/** The values' contents by name; what ONNX Runtime has no kernel for is left out. */
async function compute(model: Model, values: readonly Value[]): Promise<Map<string, Tensor>> {
  try {
    // ORT's own folding would only do the same work twice.
    return await runModel(extractModel(model, [], values), {}, { graphOptimizationLevel: "disabled" });
  } catch {
    // One value that cannot be computed must not keep the others from it.
    if (values.length <= 1) return new Map();
    const middle = values.length >> 1;
    const halves = [await compute(model, values.slice(0, middle)), await compute(model, values.slice(middle))];
    return new Map(halves.flatMap((half) => [...half]));
  }
}

/** Whether the node's outputs are tensors of types that JavaScript holds. */
function hasPlainOutputs(node: Node): boolean {
  if (makesSequence(node)) return false;
  return node.outputs.every((value, index) => {
    const dataType = value && (value.dataType ?? outputDataType(node, index));
    return !dataType || dataType === "string" || isNumeric(dataType);
  });
}

function own(bytes: Uint8Array) {
  const copy = bytes.slice();
  return { byteLength: copy.byteLength, read: (start = 0, end = copy.byteLength) => copy.subarray(start, end) };
}

/** Whether the folded result is larger than the constants it comes from directly. */
function isGrown(value: Value, result: Tensor): boolean {
  const inputs = value.producer?.inputs ?? [];
  return inputs.every((input) => (input?.initializer?.byteLength ?? 0) < result.byteLength);
}
