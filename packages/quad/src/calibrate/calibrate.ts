import { InputError } from "@quad-lora/base";
import type { Pipeline } from "@quad-lora/runtime";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { openFolder } from "../model/open-folder.ts";
import type { DenoiserShape } from "../quantizable/prepare-graph.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import { type Observations, writeObservations } from "../records/observations.ts";
import {
  type ModelCall,
  readTrajectory,
  type TaskCase,
  type Trajectory,
  writeTrajectory,
} from "../records/trajectory.ts";
import type { StageOptions } from "../work/progress.ts";
import { defaultObserveOptions, observe } from "./observe.ts";
import { recordTrajectory } from "./record-trajectory.ts";

/**
 * Stage: exposed folder and a task's cases -> trajectory file. The full-precision pipeline draws every case; all that the
 * denoiser saw and said is kept.
 * @param exposed - the folder, or its pipeline where it is open already
 */
export async function recordTask(
  exposed: string | Pipeline,
  task: string,
  cases: readonly TaskCase[],
  file: string,
  options: StageOptions = {},
): Promise<void> {
  const pipeline = typeof exposed === "string" ? await openFolder(exposed) : exposed;
  try {
    const trajectory = await recordTrajectory(pipeline, task, cases, options);
    await writeTrajectory(file, trajectory);
  } finally {
    if (pipeline !== exposed) await pipeline.dispose();
  }
}

/** Stage: exposed folder and trajectory files -> observations file. */
export async function observeTasks(
  exposed: string,
  trajectoryFiles: readonly string[],
  file: string,
  options: StageOptions & Partial<typeof defaultObserveOptions> = {},
): Promise<Observations> {
  const model = await ExposedModel.open(exposed);
  const trajectories = alignBatches(await Promise.all(trajectoryFiles.map(readTrajectory)));
  const prepared = await model.prepare(shapeOf(trajectories));
  const { activations, phases } = findQuantizable(prepared, model.slots);
  const names = [...activations, ...phases].map(({ name }) => name);
  const observations = await observe(exposed, model.component, prepared, names, trajectories, {
    ...defaultObserveOptions,
    ...options,
  });
  await writeObservations(file, observations);
  return observations;
}

/** The sizes that the recorded calls have in common. */
export function shapeOf(trajectories: readonly Trajectory[]): DenoiserShape {
  const { inputs } = trajectories[0].calls[0];
  const [sample, states] = [4, 3].map((axes) => Object.values(inputs).find(({ dims }) => dims.length === axes)!);
  const shape = { batch: sample.dims[0], height: sample.dims[2], width: sample.dims[3], tokens: states.dims[1] };
  for (const { task, calls } of trajectories) {
    for (const call of calls) {
      for (const [name, tensor] of Object.entries(call.inputs)) {
        if (tensor.dims.join() === inputs[name]?.dims.join()) continue;
        throw new InputError({
          what: "tasks draw pictures of different sizes; one graph has one size",
          where: `task "${task}", input "${name}"`,
          expected: `[${inputs[name]?.dims}]`,
          got: `[${tensor.dims}]`,
          fix: "Give all tasks the same width and height.",
        });
      }
    }
  }
  return shape;
}

/** Tasks without guidance run single rows: these are repeated up to the largest batch, as the fixed graph will. */
export function alignBatches(trajectories: Trajectory[]): Trajectory[] {
  const batchOf = (call: ModelCall) => call.output.dims[0];
  const batch = Math.max(...trajectories.flatMap(({ calls }) => calls.map(batchOf)));
  return trajectories.map(({ task, calls, results }) => ({
    task,
    ...(results ? { results } : {}),
    calls: calls.map((call) => {
      const rows = batchOf(call);
      if (rows === batch) return call;
      const repeat = (tensor: ModelCall["output"]): ModelCall["output"] => {
        if (tensor.dims.length < 2) return tensor;
        const source = tensor.data as Float32Array;
        const data = new Float32Array((source.length / rows) * batch);
        for (let at = 0; at < data.length; at += source.length) data.set(source.subarray(0, data.length - at), at);
        return { ...tensor, dims: [batch, ...tensor.dims.slice(1)], data };
      };
      const inputs = Object.fromEntries(Object.entries(call.inputs).map(([name, tensor]) => [name, repeat(tensor)]));
      return { ...call, inputs, output: repeat(call.output) };
    }),
  }));
}
