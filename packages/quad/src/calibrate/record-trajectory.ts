import type { Pipeline, TensorData } from "@quad-lora/runtime";
import type { CaseResult, ModelCall, TaskCase, Trajectory } from "../records/trajectory.ts";
import type { StageOptions } from "../work/progress.ts";

/**
 * Runs the full-precision pipeline over a task's cases and keeps every call of the denoiser: the data that calibration,
 * sensitivity scores and distillation work on.
 * @param options.stage - what to call it in progress
 */
export async function recordTrajectory(
  pipeline: Pipeline,
  task: string,
  cases: readonly TaskCase[],
  { stage = `recording ${task}`, signal, onProgress }: StageOptions & { stage?: string } = {},
): Promise<Trajectory> {
  const calls: ModelCall[] = [];
  const results: CaseResult[] = [];
  await pipeline.use(task);
  for (const [caseIndex, request] of cases.entries()) {
    const { guidance, latents } = await pipeline.generate({
      ...request,
      signal,
      onModelRun: ({ step, steps, inputs, output }) => {
        calls.push({ caseIndex, step, steps, inputs: copyAll(inputs), output: copy(output) });
      },
    });
    results.push({ guidance, latents: latents.slice() });
    onProgress?.(stage, caseIndex + 1, cases.length);
  }
  return { task, calls, results };
}

function copy(tensor: TensorData): TensorData {
  return { ...tensor, dims: [...tensor.dims], data: (tensor.data as Float32Array).slice() } as TensorData;
}

function copyAll(tensors: Readonly<Record<string, TensorData>>): Record<string, TensorData> {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, copy(tensor)]));
}
