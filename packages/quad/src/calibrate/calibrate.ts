import type { Pipeline } from "@quad-lora/runtime";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { alignBatches, shapeOf } from "../model/denoiser-calls.ts";
import { openFolder } from "../model/open-folder.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import { type Observations, writeObservations } from "../records/observations.ts";
import { readTrajectory, type TaskCase, writeTrajectory } from "../records/trajectory.ts";
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
