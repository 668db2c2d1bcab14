import { closeSync, existsSync, openSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import * as ort from "onnxruntime-node";
import { encodeModel, encodeReferring, externalFiles, inlineBytes, inlineLimit, saveModel } from "../io/save.ts";
import type { Model } from "../ir/model.ts";

/** ONNX Runtime's own session options. */
export type SessionOptions = ort.InferenceSession.SessionOptions;

// Results must not depend on how many cores the machine has: the thread count is fixed, not ORT's default.
const defaultOptions: SessionOptions = { logSeverityLevel: 3, intraOpNumThreads: 2, interOpNumThreads: 1 };

/**
 * Creates an ONNX Runtime session for a model in memory. Weights in external files are mapped, not copied.
 */
export async function createSession(model: Model, options: SessionOptions = {}): Promise<ort.InferenceSession> {
  const settings = { ...defaultOptions, ...options };
  if (externalFiles(model).size === 0 && inlineBytes(model) <= inlineLimit)
    return ort.InferenceSession.create(encodeModel(model), settings);
  const file = await writeTemporary(model);
  try {
    return await ort.InferenceSession.create(file.path, settings);
  } finally {
    file.remove();
  }
}

/**
 * Writes a model file for ONNX Runtime to open. ORT accepts external data only beside the model file, so a file of a few
 * megabytes that refers to the weights goes into their folder; where that cannot be written to, or the model has more
 * constants of its own than one file may hold, all is copied.
 * @returns the path, and what removes it again: to be called once the session exists
 */
export async function writeTemporary(model: Model): Promise<{ path: string; remove: () => void }> {
  const folders = [...new Set([...externalFiles(model)].map((file) => dirname(file)))];
  // Constants of training graphs, such as rotated weights, are their own.
  const isSmall = inlineBytes(model) <= inlineLimit;
  const path = folders.length === 1 && isSmall ? temporaryPath(folders[0]) : null;
  if (path) {
    writeFileSync(path, encodeReferring(model));
    return { path, remove: () => rmSync(path, { force: true }) };
  }
  const folder = await mkdtemp(join(tmpdir(), "quad-session-"));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  try {
    await saveModel(model, join(folder, "model.onnx"));
  } catch (error) {
    remove();
    throw error;
  }
  return { path: join(folder, "model.onnx"), remove };
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
