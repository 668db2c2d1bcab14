import { graphBytes } from "../model/graph-files.ts";
import { readManifest, readRecords } from "./bundle-folder.ts";

/** Sizes that storage depends on, bytes. */
export interface StorageSizes {
  /** A full-precision graph with one adapter merged. */
  fullPrecisionGraph: number;
  /** The quantized graph; one with an adapter merged has the same precision and about the same size. */
  quantizedGraph: number;
  /** One adapter, quantized. */
  adapter: number;
  /** What every form needs once: text encoder, autoencoder, tokenizer. */
  shared: number;
}

/** Bytes for a number of tasks. */
export interface StorageRow {
  tasks: number;
  /** One full-precision graph per task. */
  mergedFullPrecision: number;
  /** One quantized graph per task. */
  mergedQuantized: number;
  /** One quantized graph, and one adapter per task. */
  bundle: number;
}

/** What a device stores for some numbers of tasks, in the three ways to ship them. */
export function storageTable(
  { fullPrecisionGraph, quantizedGraph, adapter, shared }: StorageSizes,
  counts: readonly number[] = [1, 2, 5, 10],
): StorageRow[] {
  return counts.map((tasks) => ({
    tasks,
    mergedFullPrecision: shared + tasks * fullPrecisionGraph,
    mergedQuantized: shared + tasks * quantizedGraph,
    bundle: shared + quantizedGraph + tasks * adapter,
  }));
}

/**
 * The sizes of a bundle. An adapter is as large as the bundle's are on average; `.onnx_adapter` files, the same codes for
 * other programs, and files that only people and tools read do not count.
 * @param model - the full-precision folder, exposed or plain
 */
export async function storageSizes(bundle: string, model: string): Promise<StorageSizes> {
  const { component, files } = await readManifest(bundle);
  const records = await readRecords(bundle);
  const graph = [`${component}/model.onnx`, `${component}/model.onnx_data`];
  const quantizedGraph = graph.reduce((sum, path) => sum + (files[path]?.bytes ?? 0), 0);
  const isRun = (path: string) => path.includes("/") && !graph.includes(path);
  const shared = Object.entries(files).reduce((sum, [path, { bytes }]) => sum + (isRun(path) ? bytes : 0), 0);
  const sizes = records.map(({ name, files: own }) => own[`${name}.safetensors`]?.bytes ?? 0);
  return {
    fullPrecisionGraph: await graphBytes(model, component),
    quantizedGraph,
    adapter: sizes.length > 0 ? sizes.reduce((a, b) => a + b, 0) / sizes.length : 0,
    shared,
  };
}
