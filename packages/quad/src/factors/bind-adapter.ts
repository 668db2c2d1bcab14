import type { SafetensorsInput } from "@quad-lora/base";
import type { Slot } from "@quad-lora/runtime";
import type { AdapterLayer } from "../adapters/types.ts";

/** An adapter in the layouts of an exposed graph's inputs. */
export interface BoundAdapter {
  /** One rank for all slots: the largest of the adapter's layers, smaller ones are padded with zeros. */
  rank: number;
  /** Named as the graph inputs, float32; slots that the adapter lacks are left out. */
  tensors: SafetensorsInput[];
}

/**
 * Brings an adapter's layers into the graph inputs' layouts: A `[in, rank]`, B `[rank, out]` for linear layers (the
 * transposes of what files hold), A `[rank, in, kh, kw]`, B `[out, rank, 1, 1]` for convolutions.
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
      const concrete = (shape: Slot["shapeA"]) => shape.map((dim) => (dim === "rank" ? rank : dim));
      const isConv = slot.kind === "conv";
      const columns = layer.down.length / layer.rank;
      const a = isConv ? padRows(layer.down, columns, rank) : transposePadded(layer.down, layer.rank, columns, rank);
      const b = isConv
        ? padColumns(layer.up, layer.rank, rank)
        : padRows(transposePadded(layer.up, slot.outFeatures, layer.rank, slot.outFeatures), slot.outFeatures, rank);
      tensors.push(
        { name: slot.inputA, dtype: "F32", shape: concrete(slot.shapeA), data: a },
        { name: slot.inputB, dtype: "F32", shape: concrete(slot.shapeB), data: b },
      );
    }
  }
  return { rank, tensors };
}

/** `[rows, columns]` -> `[columns, width]`: transposed, each row filled up with zeros to `width`. */
function transposePadded(matrix: Float32Array, rows: number, columns: number, width: number): Float32Array {
  const result = new Float32Array(columns * width);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * width + row] = matrix[row * columns + column];
  }
  return result;
}

/** `[rows, columns]` with zero rows appended up to `count`. */
function padRows(matrix: Float32Array, columns: number, count: number): Float32Array {
  const result = new Float32Array(count * columns);
  result.set(matrix);
  return result;
}

/** `[rows, columns]` with zero columns appended up to `width`. */
function padColumns(matrix: Float32Array, columns: number, width: number): Float32Array {
  const rows = matrix.length / columns;
  const result = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) result.set(matrix.subarray(row * columns, (row + 1) * columns), row * width);
  return result;
}
