import { join } from "node:path";
import { type CalibrateOptions, observeTasks, recordTask } from "../calibrate/calibrate.ts";
import type { TaskCase } from "../calibrate/trajectory.ts";
import { expose } from "../expose/expose.ts";
import { HashCache } from "../files/hash-tree.ts";
import { readImage, readMask } from "../files/images.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { openFolder } from "../open.ts";
import { buildProfile } from "../profile/build-profile.ts";
import { type Profile, readProfile } from "../profile/profile.ts";
import type { BuildConfig } from "./config.ts";
import { removeStale, runStage, type StageResult } from "./stage.ts";

export interface BuildOptions {
  signal?: AbortSignal;
  onProgress?: (stage: string, done: number, total: number) => void;
  /** Told of every stage when it is done or found done. */
  onStage?: (name: string, result: StageResult) => void;
}

export interface BuildResult {
  out: string;
  profile: Profile;
  stages: Record<string, StageResult>;
}

/**
 * Stage after stage from a configuration to a bundle: expose -> record -> observe -> profile -> compile. Results of
 * unchanged stages are used again; an interrupted build continues where it stopped.
 */
export async function build(config: BuildConfig, options: BuildOptions = {}): Promise<BuildResult> {
  const work = config.work!;
  const hashes = await HashCache.open(join(work, "hashes.json"));
  const stages: Record<string, StageResult> = {};
  const common = {
    ...(options.signal ? { signal: options.signal } : {}),
    ...(options.onProgress ? { onProgress: options.onProgress } : {}),
  };
  const stage = async (label: string, name: string, inputs: unknown, run: (folder: string) => Promise<void>) => {
    options.signal?.throwIfAborted();
    const result = await runStage(work, name, inputs, run);
    stages[label] = result;
    options.onStage?.(label, result);
    return result;
  };

  const sources = {
    model: await hashModel(config.model, hashes),
    adapters: await Promise.all(
      Object.entries(config.adapters).map(async ([name, path]) => [name, await hashes.hash(path)]),
    ),
  };
  await hashes.save();
  const exposed = await stage("expose", "expose", sources, async (folder) => {
    await expose(config.model, {
      out: join(folder, "exposed"),
      adapters: config.adapters,
      ...(options.signal ? { signal: options.signal } : {}),
      onProgress: ({ stage: label, done, total }) => options.onProgress?.(label, done, total),
    });
  });
  const exposedFolder = join(exposed.folder, "exposed");

  const trajectories: string[] = [];
  const recordKeys: string[] = [];
  for (const [task, settings] of Object.entries(config.tasks)) {
    const files = settings.calibration.flatMap(({ image, mask }) => [image, mask]).filter((path) => path !== undefined);
    const pictures = await Promise.all(files.map((path) => hashes.hash(path)));
    const recorded = await stage(
      `record ${task}`,
      `record-${task}`,
      { exposed: exposed.key, settings: withoutPaths(settings), pictures },
      async (folder) => {
        await recordConfigured(exposedFolder, task, settings, join(folder, "trajectory.safetensors"), common);
      },
    );
    trajectories.push(join(recorded.folder, "trajectory.safetensors"));
    recordKeys.push(recorded.key);
  }

  const observed = await stage("observe", "observe", { recordKeys, observe: config.observe }, async (folder) => {
    const settings = Object.fromEntries(Object.entries(config.observe).filter(([, value]) => value !== undefined));
    await observeTasks(exposedFolder, trajectories, join(folder, "observations.safetensors"), {
      ...common,
      ...settings,
    });
  });

  const profiled = await stage(
    "profile",
    "profile",
    { observed: observed.key, policy: config.policy, target: config.target },
    async (folder) => {
      await buildProfile({
        exposed: exposedFolder,
        trajectories,
        observations: join(observed.folder, "observations.safetensors"),
        out: join(folder, "profile.json"),
        policy: config.policy,
        placement: config.target,
        ...common,
      });
    },
  );
  const profile = join(profiled.folder, "profile.json");

  await hashes.save();
  await removeStale(work, Object.values(stages));
  return { out: config.out, profile: await readProfile(profile), stages };
}

/** Hashes of what `expose` takes over from a model folder. */
async function hashModel(folder: string, hashes: HashCache): Promise<unknown> {
  const { entries } = await openModelFolder(folder);
  return Promise.all(entries.map(async (name) => [name, await hashes.hash(join(folder, name))]));
}

/** A task's settings without paths: pictures enter a stage's key by content. */
function withoutPaths(settings: BuildConfig["tasks"][string]): unknown {
  return {
    ...settings,
    calibration: settings.calibration.map(({ image, mask, ...rest }) => ({ ...rest, image: !!image, mask: !!mask })),
  };
}

/** Records a task as a configuration describes it. */
export async function recordConfigured(
  exposed: string,
  task: string,
  settings: BuildConfig["tasks"][string],
  file: string,
  options: CalibrateOptions,
): Promise<void> {
  await recordTask(exposed, task, await loadCases(exposed, settings), file, options);
}

/** Reads a task's pictures, in the size that the model draws. */
async function loadCases(exposed: string, settings: BuildConfig["tasks"][string]): Promise<TaskCase[]> {
  const pipeline = await openFolder(exposed);
  const size = pipeline.defaultSize;
  await pipeline.dispose();
  return Promise.all(
    settings.calibration.map(async ({ image, mask, seed, ...prompts }, index) => ({
      ...prompts,
      ...(settings.steps ? { steps: settings.steps } : {}),
      ...(settings.guidance !== undefined ? { guidance: settings.guidance } : {}),
      ...(image ? { image: await readImage(image, size) } : {}),
      ...(mask ? { mask: await readMask(mask, size) } : {}),
      seed: seed ?? index,
      ...size,
    })),
  );
}
