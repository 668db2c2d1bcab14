import { closeSync, existsSync, openSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { encodeModel, encodeReferring, externalFolders, saveModel } from "../io/save.ts";
import type { Model } from "../ir/model.ts";

export type SessionOptions = ort.InferenceSession.SessionOptions;

// Results must not depend on how many cores the machine has: the thread count is fixed, not ORT's default.
const defaultOptions: SessionOptions = { logSeverityLevel: 3, intraOpNumThreads: 2, interOpNumThreads: 1 };

/**
 * Creates an ONNX Runtime session for a model in memory. Weights in external files are mapped, not copied: ORT accepts
 * only data beside the model file, so a model file of a few megabytes lies in that folder while the session is created.
 */
export async function createSession(model: Model, options: SessionOptions = {}): Promise<ort.InferenceSession> {
  const settings = { ...defaultOptions, ...options };
  const folders = [...externalFolders(model)];
  if (folders.length === 0) return ort.InferenceSession.create(encodeModel(model), settings);
  const path = folders.length === 1 ? temporaryPath(folders[0]) : null;
  if (path) {
    try {
      writeFileSync(path, encodeReferring(model));
      return await ort.InferenceSession.create(path, settings);
    } finally {
      rmSync(path, { force: true });
    }
  }
  const folder = await mkdtemp(join(tmpdir(), "quad-session-"));
  try {
    await saveModel(model, join(folder, "model.onnx"), { externalData: "always" });
    return await ort.InferenceSession.create(join(folder, "model.onnx"), settings);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A free path in the folder, or null where the folder cannot be written to. */
function temporaryPath(folder: string): string | null {
  let path: string;
  let count = 0;
  do path = join(folder, `.quad-session-${process.pid}-${count++}.onnx`);
  while (existsSync(path));
  try {
    closeSync(openSync(path, "wx"));
    return path;
  } catch {
    return null;
  }
}
