import { InputError } from "@quad-lora/base";
import { adaptersOfTask, type Mask, type Pipeline, type RgbImage, type Task } from "@quad-lora/runtime";
import { readImage, readMask } from "../files/images.ts";
import type { BuildConfig } from "../settings/config.ts";

/** One picture of a held-out case, ready to be drawn by any pipeline: nothing is left to a pipeline's defaults. */
export interface PreparedCase {
  prompt: string;
  negativePrompt?: string;
  image?: RgbImage;
  mask?: Mask;
  /** What the input picture shows, for CLIP's directional similarity. */
  sourcePrompt?: string;
  seed: number;
  steps: number;
  guidance: number;
  width: number;
  height: number;
}

type TaskSettings = BuildConfig["tasks"][string];
type CaseSettings = NonNullable<TaskSettings["evaluation"]>[number];

/** Far from the seeds that people and calibration count up from. */
const firstHeldOutSeed = 1_000_000;
const defaultCount = 8;

/**
 * The cases that a task is judged on: the configuration's `evaluation`, in turn, or, where it has none, the calibration's
 * prompts and pictures with seeds that calibration does not use. More pictures than cases draw the cases again with other
 * seeds.
 *
 * @param count - pictures; default: one per evaluation case, else 8
 */
export function heldOutCases(settings: TaskSettings, count?: number): { cases: CaseSettings[]; note?: string } {
  const own = settings.evaluation;
  const source: readonly CaseSettings[] = own ?? settings.calibration.map(({ seed: _seed, ...rest }) => rest);
  const total = count ?? own?.length ?? defaultCount;
  const cases = Array.from({ length: total }, (_, index) => {
    const round = Math.floor(index / source.length);
    const picked = source[index % source.length];
    const seed = picked.seed === undefined ? firstHeldOutSeed + index : picked.seed + round * firstHeldOutSeed;
    return { ...picked, seed };
  });
  const key = ({ prompt, image, mask, seed }: CaseSettings) => JSON.stringify([prompt, image, mask, seed]);
  const known = new Set(
    settings.calibration.map((calibrated, index) => key({ ...calibrated, seed: calibrated.seed ?? index })),
  );
  if (!own)
    return { cases, note: "has no evaluation cases: calibration's prompts and pictures with other seeds are used" };
  const shared = cases.filter((picked) => known.has(key(picked))).length;
  return shared > 0
    ? { cases, note: `${shared} of ${total} cases were calibrated on: its figures flatter` }
    : { cases };
}

/** Fills in a task's defaults and reads the pictures, in the size that the model draws. */
export async function prepareCase(
  task: string,
  settings: Pick<TaskSettings, "steps" | "guidance">,
  { prompt, negativePrompt, image, mask, sourcePrompt, seed }: CaseSettings,
  defaults: Readonly<Task> & { readonly steps: number; readonly guidance: number },
  size: Pipeline["defaultSize"],
): Promise<PreparedCase> {
  for (const input of ["image", "mask"] as const) {
    if (!defaults.inputs?.includes(input) || { image, mask }[input] !== undefined) continue;
    throw new InputError({
      what: `task "${task}" needs a picture in every evaluation case`,
      where: `tasks.${task}.evaluation`,
      expected: `a path as "${input}"`,
    });
  }
  const negative = negativePrompt ?? defaults.negativePrompt;
  return {
    prompt: prompt ?? defaults.prompt ?? "",
    ...(negative === undefined ? {} : { negativePrompt: negative }),
    ...(image ? { image: await readImage(image, size) } : {}),
    ...(mask ? { mask: await readMask(mask, size) } : {}),
    ...(sourcePrompt === undefined ? {} : { sourcePrompt }),
    seed: seed ?? 0,
    steps: settings.steps ?? defaults.steps,
    guidance: settings.guidance ?? defaults.guidance,
    ...size,
  };
}

/** The input picture as people should see it: what is to be painted in grey. */
export function shownInput({ image, mask }: PreparedCase): RgbImage | undefined {
  if (!image || !mask) return image;
  const data = Uint8Array.from(image.data, (value, index) => (mask.data[Math.floor(index / 3)] > 127 ? 128 : value));
  return { ...image, data };
}

/** What a task of an evaluation selects, as adapters with strengths; the task says it, see {@link sayingAdapters}. */
export function adaptersOf(name: string, task: Readonly<Task>): Record<string, number> {
  return adaptersOfTask(name, task, []);
}

/** A folder's task with the adapters that it selects there: in another folder the same task may have none of its name. */
export function sayingAdapters(name: string, task: Readonly<Task>, known: readonly string[]): Task {
  return { ...task, adapter: adaptersOfTask(name, task, known) };
}
