import { readFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type DistillAdapterResult,
  type DistillSettings,
  distillAdapter,
  recordDataset,
  recordTeacher,
} from "../distill/index.ts";
import { writeRecord } from "../files/json.ts";
import { decibels } from "../metrics/index.ts";
import { openFolder } from "../model/open-folder.ts";
import { loadCases } from "../tasks/cases.ts";
import type { Stage } from "../work/stage.ts";
import { type CalibrationSettings, trajectoryFile } from "./calibrate.ts";

/** What decides which pictures a teacher draws. */
export type TeacherSettings = Pick<DistillSettings, "pictures" | "seed">;

/**
 * Exposed folder and a task -> the trajectory of the full-precision teacher, on pictures of its own or, where `dataset` names a
 * plain model folder and one of pictures and captions, on these.
 */
export const teacherStage: Stage<{
  exposed: string;
  task: string;
  cases: CalibrationSettings;
  settings: TeacherSettings;
  dataset?: { model: string; folder: string };
}> = {
  name: "teacher",
  version: 1,
  async run({ exposed, task, cases, settings, dataset }, folder, { signal, onProgress, share }) {
    const file = join(folder, trajectoryFile);
    const common = { signal, onProgress };
    if (dataset) return recordDataset(dataset.model, exposed, task, dataset.folder, file, settings, common);
    const pipeline = await share(exposed, () => openFolder(exposed));
    await recordTeacher(pipeline, task, await loadCases(pipeline, cases), file, settings, common);
  },
};

/** Exposed folder, profile and a teacher's trajectory -> `ADAPTER.safetensors`: factors tuned to the profile, and their curve. */
export const distillStage: Stage<{
  exposed: string;
  profile: string;
  adapter: string;
  trajectory: string;
  settings: DistillSettings;
}> = {
  name: "distill",
  version: 1,
  async run(input, folder, { checkpoints, signal, onProgress }) {
    const { adapter, settings } = input;
    const result = await distillAdapter({
      ...input,
      out: folder,
      checkpoints,
      signal,
      onStep: ({ step, steps, loss, terms: { features } }) => {
        const own = decibels(loss - settings.features * (features ?? 0));
        const behind = features === undefined ? "" : ` (features ${decibels(features).toFixed(1)})`;
        onProgress?.("distilling", step, steps, `${adapter} ${own.toFixed(1)} dB${behind}`);
      },
    });
    await writeRecord(join(folder, gainFile), result);
  },
};

const gainFile = "gain.json";

/** What a finished {@link distillStage} gained; its files are those in the result. */
export async function readGain(folder: string): Promise<DistillAdapterResult> {
  const gain = JSON.parse(await readFile(join(folder, gainFile), "utf8")) as DistillAdapterResult;
  const file = join(folder, `${gain.adapter}.safetensors`);
  return { ...gain, file, curvePath: join(folder, `${gain.adapter}.loss.json`) };
}
