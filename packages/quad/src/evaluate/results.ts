import { basename, join } from "node:path";
import type { Pipeline, Task } from "@quad-lora/runtime";
import { readImage, writeImage } from "../files/images.ts";
import { msssim } from "../metrics/index.ts";
import type { Evaluation, TaskEvaluation, VariantResult } from "../records/evaluation.ts";
import type { StageOptions } from "../work/progress.ts";
import { keyOf, Results } from "../work/results.ts";
import { adaptersOf, type PreparedCase, shownInput } from "./cases.ts";
import type { MetricNetworks } from "./networks.ts";
import { comparePictures, summarize } from "./picture-metrics.ts";
import { keyOfCase } from "./pictures.ts";
import type { DrawnVariant } from "./simulated-variants.ts";
import { VaeFeatures } from "./vae-features.ts";

/** Results by variant and task. */
export type Compared = Map<string, Map<string, VariantResult>>;

/**
 * Compares every variant's pictures with the reference's.
 *
 * @param folder - of the pictures
 * @param files - by variant and task
 * @param reference - model folder whose autoencoder gives features
 */
export async function compareAll(
  folder: string,
  files: ReadonlyMap<string, ReadonlyMap<string, string[]>>,
  cases: ReadonlyMap<string, readonly PreparedCase[]>,
  networks: MetricNetworks,
  reference: string,
  { signal, onProgress }: StageOptions,
): Promise<Compared> {
  const vae = await VaeFeatures.open(reference);
  const read = (list: readonly string[]) =>
    Promise.all(list.map(async (file) => asBytes(await readImage(join(folder, file)))));
  const total = [...files].reduce((sum, [name, byTask]) => sum + (name === "reference" ? 0 : byTask.size), 0);
  const result: Compared = new Map();
  let done = 0;
  try {
    for (const [variant, byTask] of files) {
      const results = new Map<string, VariantResult>();
      result.set(variant, results);
      for (const [task, list] of byTask) {
        signal?.throwIfAborted();
        const pictures = list.map((file) => `pictures/${file}`);
        if (variant === "reference") {
          results.set(task, { pictures, metrics: [], summary: null });
          continue;
        }
        const [exact, own] = [await read(files.get("reference")!.get(task)!), await read(list)];
        const metrics: VariantResult["metrics"] = [];
        for (const [index, { prompt, sourcePrompt, image }] of cases.get(task)!.entries()) {
          const words = { prompt, ...(sourcePrompt === undefined ? {} : { sourcePrompt }) };
          const given = { ...words, ...(image ? { input: asBytes(image) } : {}) };
          metrics.push(await comparePictures(exact[index], own[index], given, networks));
        }
        results.set(task, { pictures, metrics, summary: await summarize(exact, own, metrics, networks, vae) });
        onProgress?.("comparing", ++done, total);
      }
    }
  } finally {
    await vae.dispose();
  }
  return result;
}

function asBytes<Picture extends { data: Uint8Array | Uint8ClampedArray }>(image: Picture) {
  return { ...image, data: Uint8Array.from(image.data) };
}

/** The tasks' part of the evaluation; writes the input pictures. */
export async function describeResults(
  folder: string,
  tasks: ReadonlyMap<string, Readonly<Task>>,
  cases: ReadonlyMap<string, readonly PreparedCase[]>,
  compared: Compared,
): Promise<TaskEvaluation[]> {
  const pictures = new Results(folder);
  const result: TaskEvaluation[] = [];
  for (const [task, definition] of tasks) {
    const shown: TaskEvaluation["cases"] = [];
    for (const [index, one] of cases.get(task)!.entries()) {
      const { prompt, negativePrompt, seed, width, height } = one;
      const input = shownInput(one);
      const key = keyOf("input", 1, keyOfCase(one));
      const file = input
        ? basename(await pictures.file(`${task}-${index + 1}-input`, key, ".png", (path) => writeImage(path, input)))
        : undefined;
      shown.push({
        prompt,
        ...(negativePrompt ? { negativePrompt } : {}),
        seed,
        width,
        height,
        ...(file ? { input: `pictures/${file}` } : {}),
      });
    }
    const { steps, guidance } = cases.get(task)![0];
    const results: TaskEvaluation["results"] = {};
    for (const [variant, byTask] of compared) {
      const found = byTask.get(task);
      if (found && !variant.startsWith("share ")) results[variant] = found;
    }
    const { description } = definition;
    result.push({
      task,
      adapters: adaptersOf(task, definition),
      ...(description ? { description } : {}),
      steps,
      guidance,
      cases: shown,
      results,
    });
  }
  return result;
}

/** How many of MS-SSIM's scales fit a picture. */
export function scalesOf({ width, height }: Pipeline["defaultSize"]): number {
  const grey = { width, height, data: new Uint8Array(3 * width * height) };
  return msssim(grey, grey).scales;
}

export function ablationOf(variants: readonly DrawnVariant[], compared: Compared): Evaluation["ablation"] {
  return variants.flatMap(({ info, ablation }) => {
    if (!ablation) return [];
    const summaries = [...compared.get(info.name)!].map(([task, { summary }]) => [task, summary!] as const);
    return [{ ...ablation, tasks: Object.fromEntries(summaries) }];
  });
}
