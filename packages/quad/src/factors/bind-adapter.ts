import type { SafetensorsInput } from "@quad-lora/base";
import type { Slot } from "@quad-lora/runtime";
import type { AdapterLayer } from "../adapters/types.ts";
import { factorDims, fileToGraph } from "./slot-layout.ts";

/** An adapter in the layouts of an exposed graph's inputs. */
export interface BoundAdapter {
  /** One rank for all slots: the largest of the adapter's layers, smaller ones are padded with zeros. */
  rank: number;
  /** Named as the graph inputs, float32; slots that the adapter lacks are left out. */
  tensors: SafetensorsInput[];
}

/**
 * Brings an adapter's layers from the layouts of files into those of the graph inputs.
 * @param slots - by component
 */
export function bindAdapter(
  layers: readonly AdapterLayer[],
  slots: Readonly<Record<string, { slots: readonly Slot[] }>>,
): BoundAdapter {
  const rank = Math.max(...layers.map((layer) => layer.rank));
  const byModule = new Map(layers.map((layer) => [`${layer.component}.${layer.module}`, layer]));
  const tensors: SafetensorsInput[] = [];
  for (const [component, { slots: list }] of Object.entries(slots)) {
    for (const slot of list) {
      const layer = byModule.get(`${component}.${slot.name}`);
      if (!layer) continue;
      const { a, b } = fileToGraph(slot, layer, rank);
      tensors.push(
        { name: slot.inputA, dtype: "F32", shape: factorDims(slot.shapeA, rank), data: a },
        { name: slot.inputB, dtype: "F32", shape: factorDims(slot.shapeB, rank), data: b },
      );
    }
  }
  return { rank, tensors };
}
