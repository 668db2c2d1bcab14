import { closeSync, mkdirSync, openSync, renameSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import type { Graph } from "../ir/graph.ts";
import type { Model } from "../ir/model.ts";
import type { Tensor } from "../ir/tensor.ts";
import { modelToProto, type Placement } from "./write-proto.ts";

/** Options of {@link saveModel}. */
export interface SaveOptions {
  /**
   * Whether weights go to a second file, `NAME.onnx_data`. "auto": when they already came from files,
   * or when the model would come near protobuf's limit of 2 GB.
   */
  externalData?: "auto" | "always" | "never";
  /** Called as the data file grows. */
  onProgress?: (doneBytes: number, totalBytes: number) => void;
  signal?: AbortSignal;
}

/** Bytes of constants that a model file may hold itself: protobuf, and a single write, end at 2 GiB. */
export const inlineLimit = 2 ** 30;
/** Tensors below this many bytes stay in the model file: shape arithmetic and scalars. */
const externalThreshold = 1024;
/** The same for sizes, axes and indices: runtimes read them when they infer shapes, before any external data. */
const integerThreshold = 1 << 20;
const alignment = 64;
const chunkBytes = 1 << 24;

/**
 * Writes a model; the data file, if any, lies beside it. Both appear under their final names only when complete.
 * Tensors are streamed, so memory does not grow with the weights.
 */
export async function saveModel(model: Model, path: string, options: SaveOptions = {}): Promise<void> {
  mkdirSync(dirname(path), { recursive: true });
  const tensors = collectTensors(model.graph);
  if (!goesExternal([...tensors], options.externalData ?? "auto")) {
    writeRenamed(
      path,
      toBinary(
        ModelProtoSchema,
        modelToProto(model, () => null),
      ),
    );
    return;
  }
  const location = `${basename(path)}_data`;
  const plan = planLayout([...tensors], location);
  const dataPath = join(dirname(path), location);
  const temporary = `${dataPath}.${process.pid}.tmp`;
  try {
    await writeData(plan.tensors, temporary, plan.total, options);
    const bytes = toBinary(ModelProtoSchema, modelToProto(model, plan.place));
    renameSync(temporary, dataPath);
    writeRenamed(path, bytes);
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** The bytes of the model as one file. Weights in external files are read in; fails above 2 GB. */
export function encodeModel(model: Model): Uint8Array {
  return toBinary(
    ModelProtoSchema,
    modelToProto(model, () => null),
  );
}

/**
 * The bytes of a model file that refers to its file-backed tensors where they already lie. Valid only when written into
 * the folder that holds those files.
 */
export function encodeReferring(model: Model): Uint8Array {
  const place: Placement = (tensor) =>
    tensor.source.file
      ? {
          location: basename(tensor.source.file.path),
          offset: tensor.source.file.offset,
          length: tensor.source.byteLength,
        }
      : null;
  return toBinary(ModelProtoSchema, modelToProto(model, place));
}

/** The files that hold the model's external tensors. */
export function externalFiles(model: Model): Set<string> {
  const files = new Set<string>();
  for (const { source } of collectTensors(model.graph)) if (source.file) files.add(source.file.path);
  return files;
}

/** Bytes of the model's constants that lie in no external file. */
export function inlineBytes(model: Model): number {
  let bytes = 0;
  for (const { source } of collectTensors(model.graph)) if (!source.file) bytes += source.byteLength;
  return bytes;
}

function collectTensors(graph: Graph, tensors = new Set<Tensor>()): Set<Tensor> {
  for (const value of graph.initializers) tensors.add(value.initializer!);
  for (const node of graph.nodes) {
    for (const attribute of node.attributes.values()) if (attribute.kind === "tensor") tensors.add(attribute.value);
    for (const subgraph of node.subgraphs) collectTensors(subgraph, tensors);
  }
  return tensors;
}

/** Bytes of all constants, each counted once. */
export function constantBytes(graph: Graph): number {
  let total = 0;
  for (const tensor of collectTensors(graph)) total += tensor.byteLength;
  return total;
}

function goesExternal(tensors: Tensor[], mode: "auto" | "always" | "never"): boolean {
  if (mode !== "auto") return mode === "always";
  const total = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  return total > inlineLimit || tensors.some((tensor) => tensor.source.file);
}

interface Layout {
  tensors: { tensor: Tensor; offset: number }[];
  total: number;
  place: Placement;
}

function planLayout(all: Tensor[], location: string): Layout {
  const placed = new Map<Tensor, { location: string; offset: number; length: number }>();
  const bySource = new Map<string, { location: string; offset: number; length: number }>();
  const tensors: Layout["tensors"] = [];
  let end = 0;
  for (const tensor of all) {
    const threshold = tensor.dataType === "int64" ? integerThreshold : externalThreshold;
    if (tensor.strings || tensor.byteLength < threshold) continue;
    const { file } = tensor.source;
    const key = file ? `${file.path}\n${file.offset}\n${tensor.byteLength}` : "";
    const shared = key ? bySource.get(key) : undefined;
    if (shared) {
      placed.set(tensor, shared);
      continue;
    }
    const offset = Math.ceil(end / alignment) * alignment;
    const place = { location, offset, length: tensor.byteLength };
    end = offset + tensor.byteLength;
    placed.set(tensor, place);
    if (key) bySource.set(key, place);
    tensors.push({ tensor, offset });
  }
  return { tensors, total: end, place: (tensor) => placed.get(tensor) ?? null };
}

async function writeData(
  tensors: Layout["tensors"],
  path: string,
  total: number,
  { onProgress, signal }: SaveOptions,
): Promise<void> {
  const descriptor = openSync(path, "w");
  try {
    for (const { tensor, offset } of tensors) {
      for (let start = 0; start < tensor.byteLength; start += chunkBytes) {
        signal?.throwIfAborted();
        const end = Math.min(start + chunkBytes, tensor.byteLength);
        const bytes = tensor.source.read(start, end);
        for (let done = 0; done < bytes.length; ) {
          done += writeSync(descriptor, bytes, done, bytes.length - done, offset + start + done);
        }
        onProgress?.(offset + end, total);
        // Writing is synchronous; let interrupts and progress through between chunks.
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
  } finally {
    closeSync(descriptor);
  }
}

function writeRenamed(path: string, bytes: Uint8Array): void {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(temporary, bytes);
    renameSync(temporary, path);
  } finally {
    rmSync(temporary, { force: true });
  }
}
