import type { Pipeline } from "@quad-lora/runtime";
import { readImage, readMask } from "../files/images.ts";
import { defaultSize } from "../model/picture-size.ts";
import type { TaskCase } from "../records/trajectory.ts";
import type { BuildConfig } from "../settings/config.ts";

/** What a configuration says about one task. */
export type TaskSettings = BuildConfig["tasks"][string];

/** Reads a task's calibration pictures, in the size that the model draws: that of a folder or of an open pipeline. */
export async function loadCases(
  exposed: string | Pipeline,
  settings: Pick<TaskSettings, "calibration" | "steps" | "guidance">,
): Promise<TaskCase[]> {
  const size = typeof exposed === "string" ? await defaultSize(exposed) : exposed.defaultSize;
  const { steps, guidance } = settings;
  return Promise.all(
    settings.calibration.map(async ({ image, mask, seed, ...prompts }, index) => ({
      ...prompts,
      ...(steps ? { steps } : {}),
      ...(guidance !== undefined ? { guidance } : {}),
      ...(image ? { image: await readImage(image, size) } : {}),
      ...(mask ? { mask: await readMask(mask, size) } : {}),
      seed: seed ?? index,
      ...size,
    })),
  );
}
