import { openPipeline, type Pipeline } from "@quad/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles } from "./files/folder-files.ts";

/**
 * Opens an exposed folder, a bundle, or a plain diffusers/Optimum ONNX folder on this machine.
 * @param threads - CPU threads per graph; ONNX Runtime's default where left out
 * @throws InputError when files are missing, broken or do not fit each other
 */
export function openFolder(folder: string, options: { threads?: number } = {}): Promise<Pipeline> {
  return openPipeline({
    ort: ort as never,
    files: folderFiles(folder),
    sessionOptions: { logSeverityLevel: 3, ...(options.threads ? { intraOpNumThreads: options.threads } : {}) },
  });
}
