import { elementCount } from "@quad-lora/onnx";
import type { BundleQuality, Pipeline } from "@quad-lora/runtime";
import { pickInputRows } from "../model/denoiser-calls.ts";
import { runCall } from "../model/run-call.ts";
import { ScoreKeeper } from "../profile/scores.ts";
import { thin } from "../profile/sensitivity.ts";
import type { ModelCall, Trajectory } from "../records/trajectory.ts";

export interface QualityOptions {
  /** Rows that the quantized graph takes per run. */
  batch: number;
  /** Recorded calls to take, spread evenly. */
  calls: number;
  signal?: AbortSignal;
}

/** Runs a bundle's denoiser on recorded calls, with the selection in use, and compares with what full precision said. */
export async function measureQuality(
  pipeline: Pipeline,
  component: string,
  trajectory: Trajectory,
  { batch, calls, signal }: QualityOptions,
): Promise<BundleQuality> {
  const keeper = new ScoreKeeper();
  const taken = thin(trajectory, calls).calls;
  for (const call of taken) {
    signal?.throwIfAborted();
    keeper.add(call, await predictRows(pipeline, component, call, batch));
  }
  const { qss, sqnr } = keeper.scores();
  return { qss, sqnr: Number.isFinite(sqnr) ? sqnr : null, calls: taken.length };
}

/** The denoiser's output for a call of any number of rows, from a graph of `batch` rows: several runs, or rows repeated. */
async function predictRows(
  pipeline: Pipeline,
  component: string,
  call: ModelCall,
  batch: number,
): Promise<Float32Array> {
  const [rows, ...rest] = call.output.dims;
  const rowSize = elementCount(rest);
  const result = new Float32Array(rows * rowSize);
  for (let start = 0; start < rows; start += batch) {
    const indices = Array.from({ length: batch }, (_, index) => (start + index) % rows);
    const outputs = await runCall(pipeline, component, pickInputRows(call, indices));
    const values = Object.values(outputs)[0].data as Float32Array;
    result.set(values.subarray(0, Math.min(batch, rows - start) * rowSize), start * rowSize);
  }
  return result;
}
