import { existsSync } from "node:fs";
import { join } from "node:path";
import { recordTrajectory } from "../calibrate/record-trajectory.ts";
import { hashFile } from "../files/hash.ts";
import { openFolder } from "../model/open-folder.ts";
import { type Evaluation, noiseSchema, type TaskNoise } from "../records/evaluation.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { StageOptions } from "../work/progress.ts";
import { keyOf, Results } from "../work/results.ts";
import { adaptersOf, type PreparedCase } from "./cases.ts";
import { measureNoise } from "./noise.ts";
import { keyOfCase } from "./pictures.ts";
import { clippedRanges } from "./ranges.ts";
import type { Simulations } from "./simulations.ts";

/** Changes whenever the noise of the same inputs may come out otherwise. */
const noiseVersion = 2;

export interface CauseOptions extends StageOptions {
  cache: string;
  /** Denoiser calls per task; 0 leaves the measurement out. */
  calls: number;
  bundle: string | undefined;
}

/** What each layer costs each task, and what the shared ranges clip. */
export async function measureCauses(
  simulations: Simulations,
  reference: string,
  cases: ReadonlyMap<string, readonly PreparedCase[]>,
  options: CauseOptions,
): Promise<Pick<Evaluation, "noise" | "ranges">> {
  const { profile, observations } = simulations.sources;
  const noise: Record<string, TaskNoise> = {};
  const results = new Results(options.cache);
  for (const [task, [first]] of options.calls > 0 ? cases : []) {
    const { calls, bundle, signal, onProgress } = options;
    const key = await noiseKey(simulations, task, first, options);
    noise[task] = await results.value("noise", key, noiseSchema, async () => {
      const trajectory = await recordCase(reference, task, first, signal);
      const measured = await measureNoise(simulations, [trajectory], { calls, bundle, signal, onProgress });
      return measured[task];
    });
  }
  const points = observations ? clippedRanges(simulations.layerInputs(), profile, observations) : [];
  return {
    noise: options.calls > 0 ? { calls: options.calls, tasks: noise } : null,
    ranges: observations ? { stepGroups: observations.stepGroups, points } : null,
  };
}

/** How many tasks' layers are measured. */
export async function countNoise(
  simulations: Simulations,
  cases: ReadonlyMap<string, readonly PreparedCase[]>,
  options: Pick<CauseOptions, "cache" | "calls" | "bundle">,
): Promise<{ done: number; total: number }> {
  const results = new Results(options.cache);
  let done = 0;
  if (options.calls === 0) return { done, total: 0 };
  for (const [task, [first]] of cases) {
    const key = await noiseKey(simulations, task, first, options);
    if (existsSync(results.path("noise", key, ".json"))) done++;
  }
  return { done, total: cases.size };
}

async function noiseKey(
  simulations: Simulations,
  task: string,
  first: PreparedCase,
  { calls, bundle }: Pick<CauseOptions, "calls" | "bundle">,
): Promise<string> {
  const bundled = bundle ? await adapterHashes(bundle, task, simulations) : null;
  return keyOf("noise", noiseVersion, [simulations.identityOf(task), keyOfCase(first), calls, bundled]);
}

/** Every call of the denoiser while the full-precision model draws one case. */
async function recordCase(
  reference: string,
  task: string,
  { sourcePrompt: _source, ...request }: PreparedCase,
  signal?: AbortSignal,
): Promise<Trajectory> {
  const pipeline = await openFolder(reference);
  try {
    return await recordTrajectory(pipeline, task, [request], { signal });
  } finally {
    await pipeline.dispose();
  }
}

async function adapterHashes(bundle: string, task: string, simulations: Simulations): Promise<unknown> {
  const names = Object.keys(adaptersOf(task, simulations.sources.tasks.get(task) ?? {}));
  const paths = names.map((name) => join(bundle, "adapters", `${name}.safetensors`));
  return Promise.all(paths.map((path) => (existsSync(path) ? hashFile(path) : null)));
}
