import { fromFloat32, InputError } from "@quad-lora/base";
import { type Graph, type Model, memorySource, type Node, Tensor, type Value } from "@quad-lora/onnx";
import type { AdapterLayer } from "../adapters/types.ts";
import type { Layer } from "../layers/find-layers.ts";

/**
 * Folds an adapter into a model's weights: `W <- W + strength * up * down` (Hu et al., "LoRA", arXiv 2106.09685, section
 * 4.1). The result needs no adapter inputs and no extra work per run, and can no longer switch. Edits `model` in place;
 * weights are read, changed and replaced one layer at a time. A weight that other layers share stays as it is for them.
 *
 * Grouped convolutions follow the same formula, with `up * down` reshaped to `[out, in / groups, kh, kw]`.
 *
 * @param layers - the model's layers, from `findLayers` on this very model
 * @param adapterLayers - the layers of an imported adapter that belong to this component
 * @param strength - any finite number; calls add up, so several adapters merge one after the other
 * @returns the number of layers that changed
 * @throws InputError for a module that `layers` lacks, factors that do not fit it, a weight of another type than float32,
 * float16 or bfloat16, a strength that is not finite, and sums that the weight's type cannot hold. The model is then
 * partly merged: throw it away.
 */
export function mergeAdapter(
  model: Model,
  layers: readonly Layer[],
  adapterLayers: readonly AdapterLayer[],
  strength = 1,
): number {
  if (!Number.isFinite(strength)) {
    throw new InputError({ what: "the strength is not a finite number", got: String(strength) });
  }
  const byName = new Map(layers.map((layer) => [layer.name, layer]));
  for (const factors of adapterLayers) {
    const layer = byName.get(factors.module);
    if (!layer) {
      throw new InputError({
        what: "the model has no such layer",
        file: model.file,
        where: factors.module,
        fix: `Pass only the adapter's layers of this component; this one is of ${factors.component}.`,
      });
    }
    checkFactors(layer, factors);
    mergeLayer(model, layer, factors, strength);
  }
  return adapterLayers.length;
}

function checkFactors(layer: Layer, { rank, down, up, module }: AdapterLayer): void {
  const expected = { down: rank * columnsOf(layer), up: layer.outFeatures * rank };
  if (down.length === expected.down && up.length === expected.up) return;
  throw new InputError({
    what: "the adapter's factors do not fit the layer",
    where: module,
    expected: `${expected.down} values in down and ${expected.up} in up`,
    got: `${down.length} and ${up.length}`,
  });
}

/** Weights per output: `in`, for convolutions `in / groups * kh * kw`. */
function columnsOf({ kind, inFeatures, groups = 1, kernel = [1, 1] }: Layer): number {
  return kind === "conv" ? (inFeatures / groups) * kernel[0] * kernel[1] : inFeatures;
}

function mergeLayer(model: Model, layer: Layer, factors: AdapterLayer, strength: number): void {
  const { graph } = model;
  // Calls read one weight, yet may transpose it or not: one merged weight per layout.
  const merged = new Map<boolean, Value>();
  for (const { node } of layer.calls) {
    const { weight, transposed } = weightBehind(node);
    const isOutputMajor = layer.kind === "conv" || (layer.kind === "gemm" && node.int("transB", 0) === 1);
    let value = merged.get(isOutputMajor);
    if (!value) {
      const values = valuesAsRead(weight, transposed);
      addProduct(values, layer, factors, strength, isOutputMajor);
      const rows = layer.outFeatures;
      const dims =
        layer.kind === "conv"
          ? weight.initializer!.dims
          : isOutputMajor
            ? [rows, layer.inFeatures]
            : [layer.inFeatures, rows];
      value = graph.addInitializer(`${weight.name}.merged`, encode(values, dims, weight, layer));
      merged.set(isOutputMajor, value);
    }
    const before = node.input(1);
    node.setInput(1, value);
    removeUnread(graph, before);
  }
}

/** The initializer that a node's weight input comes from through Identity and Transpose, as `findLayers` accepts it. */
function weightBehind(node: Node): { weight: Value; transposed: boolean } {
  let transposed = false;
  let value = node.input(1);
  while (!value.initializer) {
    const producer: Node = value.producer!;
    if (producer.opType === "Transpose") transposed = !transposed;
    value = producer.input(0);
  }
  return { weight: value, transposed };
}

/** The weight's elements in the order in which the node reads them; always a copy. */
function valuesAsRead(weight: Value, transposed: boolean): Float32Array {
  const values = weight.initializer!.toFloat32();
  if (!transposed) return Float32Array.from(values);
  const [rows, columns] = weight.initializer!.dims as [number, number];
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = values[row * columns + column];
  }
  return result;
}

/** `weight += strength * up * down`, with the sum over ranks in double precision. */
function addProduct(
  weight: Float32Array,
  layer: Layer,
  { rank, down, up }: AdapterLayer,
  strength: number,
  isOutputMajor: boolean,
): void {
  const columns = columnsOf(layer);
  const rows = layer.outFeatures;
  const sums = new Float64Array(columns);
  for (let row = 0; row < rows; row++) {
    sums.fill(0);
    for (let r = 0; r < rank; r++) {
      const factor = strength * up[row * rank + r];
      if (factor === 0) continue;
      const offset = r * columns;
      for (let column = 0; column < columns; column++) sums[column] += factor * down[offset + column];
    }
    if (isOutputMajor) for (let column = 0; column < columns; column++) weight[row * columns + column] += sums[column];
    else for (let column = 0; column < columns; column++) weight[column * rows + row] += sums[column];
  }
}

const storage = { float32: "F32", float16: "F16", bfloat16: "BF16" } as const;

function encode(values: Float32Array, dims: readonly number[], weight: Value, layer: Layer): Tensor {
  const { dataType } = weight.initializer!;
  if (dataType !== "float32" && dataType !== "float16" && dataType !== "bfloat16") {
    throw new InputError({
      what: "an adapter can be merged only into floating-point weights",
      where: layer.name,
      expected: Object.keys(storage).join(", "),
      got: dataType,
      fix: "Merge before quantizing.",
    });
  }
  const largest = dataType === "float16" ? 65504 : 3.4e38;
  const overflow = values.find((value) => !(Math.abs(value) <= largest));
  if (overflow !== undefined) {
    throw new InputError({
      what: `the merged weight is outside ${dataType}'s range`,
      where: layer.name,
      got: String(overflow),
      fix: "Merge with a smaller strength, or into a float32 model.",
    });
  }
  const { buffer, byteOffset, byteLength } = fromFloat32(values, storage[dataType]);
  return new Tensor(dataType, dims, memorySource(new Uint8Array(buffer, byteOffset, byteLength)));
}

/** Removes what nothing reads any more: the old weight, with the Identity and Transpose nodes behind it. */
function removeUnread(graph: Graph, value: Value): void {
  if (value.uses.length > 0 || graph.outputs.includes(value)) return;
  const { producer } = value;
  if (!producer) {
    graph.initializers.delete(value);
    return;
  }
  const source = producer.input(0);
  graph.remove(producer);
  removeUnread(graph, source);
}
