import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Model, writeTemporary } from "@quad-lora/onnx";
import { type FolderFiles, openPipeline, type Pipeline } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles } from "../files/folder-files.ts";

/**
 * Session settings under which Q/DQ pairs are computed as written, so that a simulation is what it says. Threads do not
 * spin while they wait: simulations run for minutes, often several side by side.
 */
export const simulationSettings = {
  logSeverityLevel: 3 as const,
  intraOpNumThreads: 2,
  extra: { session: { disable_quant_qdq: "1", intra_op: { allow_spinning: "0" } } },
};

/**
 * Opens a model folder with another graph in a component's place: an observed or simulated form of it. The folder itself
 * stays as it is.
 * @param threads - CPU threads per graph
 */
export async function openWithGraph(
  folder: string,
  component: string,
  model: Model,
  threads = simulationSettings.intraOpNumThreads,
): Promise<Pipeline> {
  const files = folderFiles(folder);
  const replaced = `${component}/model.onnx`;
  const temporary = await writeTemporary(model);
  const overlay: FolderFiles = {
    ...files,
    read: (path) => (path === replaced ? readFile(temporary.path) : files.read(path)),
    localPath: (path) => (path === replaced ? temporary.path : join(folder, path)),
  };
  try {
    const sessionOptions = { ...simulationSettings, intraOpNumThreads: threads };
    return await openPipeline({ ort: ort as never, files: overlay, sessionOptions });
  } finally {
    temporary.remove();
  }
}
