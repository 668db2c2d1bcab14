import type * as ort from "onnxruntime-node";
import type { Model } from "../ir/model.ts";
import type { Tensor } from "../ir/tensor.ts";
import { createSession, type SessionOptions } from "./session.ts";
import { fromOrt, toOrt } from "./tensors.ts";

/** Runs a model once and releases it: graph outputs by name. */
export async function runModel(
  model: Model,
  inputs: Readonly<Record<string, Tensor>>,
  options?: SessionOptions,
): Promise<Map<string, Tensor>> {
  const session = await createSession(model, options);
  try {
    return await runSession(session, inputs);
  } finally {
    await session.release();
  }
}

/** Runs a session once: outputs by name, or only those in `fetches`. */
export async function runSession(
  session: ort.InferenceSession,
  inputs: Readonly<Record<string, Tensor>>,
  fetches?: readonly string[],
): Promise<Map<string, Tensor>> {
  const feeds = Object.fromEntries(Object.entries(inputs).map(([name, tensor]) => [name, toOrt(tensor)]));
  const outputs = fetches ? await session.run(feeds, [...fetches]) : await session.run(feeds);
  return new Map(Object.entries(outputs).map(([name, tensor]) => [name, fromOrt(tensor)]));
}
