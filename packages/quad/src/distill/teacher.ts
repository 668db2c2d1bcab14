import type { Pipeline } from "@quad-lora/runtime";
import { recordTask } from "../calibrate/calibrate.ts";
import type { TaskCase } from "../records/trajectory.ts";
import type { DistillSettings } from "../settings/distill.ts";
import type { StageOptions } from "../work/progress.ts";

/** Far from seeds that people choose, so that nothing they look at later was trained on. */
const firstSeed = 1_000_000_000;

/**
 * Cases for the teacher to draw, from a task's few calibration cases: in every further round each picture gets the prompt of
 * another case, odd rounds mirror the pictures, and every case has a seed of its own. What the student has to reproduce is
 * the teacher's answer to an input, so inputs may be combined as no one would ask for them.
 */
export function teacherCases(
  cases: readonly TaskCase[],
  { pictures, seed }: Pick<DistillSettings, "pictures" | "seed">,
): TaskCase[] {
  return Array.from({ length: pictures }, (_, index) => {
    const round = Math.floor(index / cases.length);
    const given = cases[index % cases.length];
    const { prompt, negativePrompt } = given.image ? cases[(index + round) % cases.length] : given;
    const { image, mask } = given;
    const isMirrored = round % 2 === 1;
    return {
      ...given,
      ...(prompt !== undefined ? { prompt } : {}),
      ...(negativePrompt !== undefined ? { negativePrompt } : {}),
      ...(image ? { image: isMirrored ? { ...image, data: mirrored(image, 3) } : image } : {}),
      ...(mask ? { mask: isMirrored ? { ...mask, data: mirrored(mask, 1) } : mask } : {}),
      seed: firstSeed + seed * 1_000_000 + index,
    };
  });
}

function mirrored({ width, data }: { width: number; data: ArrayLike<number> }, channels: number): Uint8Array {
  const result = new Uint8Array(data.length);
  const row = width * channels;
  for (let index = 0; index < data.length; index++) {
    const column = Math.floor((index % row) / channels);
    result[index] = data[index + (width - 1 - 2 * column) * channels];
  }
  return result;
}

/** Stage: exposed folder and a task's calibration cases -> trajectory of the full-precision teacher. */
export function recordTeacher(
  exposed: string | Pipeline,
  task: string,
  cases: readonly TaskCase[],
  file: string,
  settings: Pick<DistillSettings, "pictures" | "seed">,
  options: StageOptions = {},
): Promise<void> {
  return recordTask(exposed, task, teacherCases(cases, settings), file, options);
}
