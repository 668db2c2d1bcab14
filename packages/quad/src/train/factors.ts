import { InputError } from "@quad-lora/base";
import { elementCount, type PackedParameter } from "@quad-lora/onnx";
import { SeededRandom, type Slot } from "@quad-lora/runtime";
import type { AdapterComponent, AdapterLayer } from "../adapters/types.ts";
import { copyRanks, fileToGraph, graphToFile, valuesPerRank } from "../factors/slot-layout.ts";
import type { Layer } from "../layers/find-layers.ts";

/** Layer groups that `--layers` names. */
export const layerGroups = ["attention", "feed-forward", "convolutions", "all"] as const;

/**
 * Chooses layers by groups (`attention,feed-forward`) or by a regular expression on module paths. Attention means every
 * linear layer of a transformer block but its feed-forward, the projections around the block included.
 * @throws InputError where nothing matches, or the expression is none
 */
export function chooseLayers(layers: readonly Layer[], choice: string): Layer[] {
  const groups = choice.split(",").map((group) => group.trim());
  const known = groups.every((group) => (layerGroups as readonly string[]).includes(group));
  const pattern = known ? null : parsePattern(choice);
  const chosen = layers.filter((layer) =>
    pattern ? pattern.test(layer.name) : groups.includes("all") || groups.includes(groupOf(layer)),
  );
  if (chosen.length > 0) return chosen;
  throw new InputError({
    what: "no layer of the model matches",
    where: `layers "${choice}"`,
    expected: `${layerGroups.join(", ")}, or a regular expression on names such as ${layers[0]?.name ?? "none"}`,
  });
}

function groupOf({ name, kind }: Layer): string {
  const inBlock = /(^|\.)(attentions|transformer_blocks|attn\d*)\./.test(name);
  if (inBlock) return /\.ff(_context)?\./.test(name) ? "feed-forward" : "attention";
  return kind === "conv" ? "convolutions" : "other";
}

function parsePattern(text: string): RegExp {
  try {
    return new RegExp(text);
  } catch (error) {
    throw new InputError({
      what: `is not a regular expression: ${(error as Error).message}`,
      where: `layers "${text}"`,
    });
  }
}

/**
 * Start values of packed factors: A uniform in +-1 / sqrt(inputs), as Kaiming's rule with slope sqrt(5) gives and other trainers
 * start from; B zero, so that training starts at the base model.
 */
export function initialFactors(layout: readonly PackedParameter[], slots: readonly Slot[], seed: number): Float32Array {
  const random = new SeededRandom(seed);
  const fansIn = new Map(slots.map(({ inputA, shapeA }) => [inputA, valuesPerRank(shapeA)]));
  const size = layout.reduce((sum, { dims }) => sum + elementCount(dims), 0);
  const values = new Float32Array(size);
  for (const { name, offset, dims } of layout) {
    const fanIn = fansIn.get(name);
    if (fanIn === undefined) continue;
    const bound = 1 / Math.sqrt(fanIn);
    for (let i = 0; i < elementCount(dims); i++) values[offset + i] = (2 * random.uniform() - 1) * bound;
  }
  return values;
}

/**
 * Start values that continue an adapter: its factors take the first ranks, the others start as {@link initialFactors} says.
 * @param values - from `initialFactors`; changed in place
 * @param scale - alpha / rank of the training graph
 * @throws InputError where the adapter's rank is larger than the graph's
 */
export function continueAdapter(
  values: Float32Array,
  layout: readonly PackedParameter[],
  slots: readonly Slot[],
  layers: readonly AdapterLayer[],
  scale: number,
): Float32Array {
  const places = new Map(layout.map((place) => [place.name, place]));
  const adapters = new Map(layers.map((layer) => [layer.module, layer]));
  for (const slot of slots) {
    const layer = adapters.get(slot.name);
    if (!layer) continue;
    const [a, b] = [places.get(slot.inputA)!, places.get(slot.inputB)!];
    const rank = rankOf(slot, a.dims);
    if (layer.rank > rank) {
      throw new InputError({
        what: "the adapter to start from has a larger rank than the one to train",
        where: slot.name,
        expected: `at most ${rank}`,
        got: String(layer.rank),
        fix: `Use --rank ${layer.rank}.`,
      });
    }
    const given = fileToGraph(slot, { ...layer, up: layer.up.map((value) => value / scale) });
    copyRanks(given.a, layer.rank, values.subarray(a.offset, a.offset + elementCount(a.dims)), rank, slot.shapeA);
    copyRanks(given.b, layer.rank, values.subarray(b.offset, b.offset + elementCount(b.dims)), rank, slot.shapeB);
  }
  return values;
}

/**
 * Packed factors as an adapter's layers, in the layouts that files hold.
 * @param scale - alpha / rank, folded into B
 */
export function adapterLayers(
  component: AdapterComponent,
  slots: readonly Slot[],
  layout: readonly PackedParameter[],
  values: Float32Array,
  scale: number,
): AdapterLayer[] {
  const places = new Map(layout.map((place) => [place.name, place]));
  const slice = (name: string) => {
    const { offset, dims } = places.get(name)!;
    return values.slice(offset, offset + elementCount(dims));
  };
  return slots.map((slot) => {
    const rank = rankOf(slot, places.get(slot.inputA)!.dims);
    const { down, up } = graphToFile(slot, { a: slice(slot.inputA), b: slice(slot.inputB) }, rank);
    return { component, module: slot.name, rank, down, up: up.map((value) => value * scale) };
  });
}

/** The rank of a slot's factor A with the given shape. */
function rankOf({ shapeA }: Slot, dims: readonly number[]): number {
  return dims[shapeA.indexOf("rank")];
}
