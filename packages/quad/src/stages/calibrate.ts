import { join } from "node:path";
import type { Pipeline } from "@quad-lora/runtime";
import { observeTasks, recordTask } from "../calibrate/calibrate.ts";
import { openFolder } from "../model/open-folder.ts";
import type { BuildConfig } from "../settings/config.ts";
import { loadCases, type TaskSettings } from "../tasks/cases.ts";
import type { StageOptions } from "../work/progress.ts";
import type { Stage } from "../work/stage.ts";

/** What of a task's settings decides what is drawn for it. */
export type CalibrationSettings = Pick<TaskSettings, "calibration" | "steps" | "guidance">;

/** File in the results of {@link recordStage} and of the teacher's. */
export const trajectoryFile = "trajectory.safetensors";

/** File in the result of {@link observeStage}. */
export const observationsFile = "observations.safetensors";

/** Exposed folder and a task -> the trajectory of full precision. */
export const recordStage: Stage<{ exposed: string; task: string; settings: CalibrationSettings }> = {
  name: "record",
  version: 1,
  async run({ exposed, task, settings }, folder, { signal, onProgress, share }) {
    const pipeline = await share(exposed, () => openFolder(exposed));
    await recordConfigured(pipeline, task, settings, join(folder, trajectoryFile), { signal, onProgress });
  },
};

/**
 * Records a task as a configuration describes it.
 * @param exposed - the folder, or its pipeline where it is open already
 */
export async function recordConfigured(
  exposed: string | Pipeline,
  task: string,
  settings: CalibrationSettings,
  file: string,
  options: StageOptions,
): Promise<void> {
  await recordTask(exposed, task, await loadCases(exposed, settings), file, options);
}

/** Exposed folder and the trajectories of all tasks -> what every value was seen to be. */
export const observeStage: Stage<{ exposed: string; trajectories: string[]; settings: BuildConfig["observe"] }> = {
  name: "observe",
  version: 1,
  async run({ exposed, trajectories, settings }, folder, { signal, onProgress }) {
    await observeTasks(exposed, trajectories, join(folder, observationsFile), { ...settings, signal, onProgress });
  },
};
