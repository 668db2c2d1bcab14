import { join } from "node:path";
import type { AdapterRecord, BundleQuality, Pipeline } from "@quad-lora/runtime";
import { readManifest, readRecords } from "../bundle/bundle-folder.ts";
import { isBundleAsWritten, noteBundle } from "../bundle/bundle-state.ts";
import { observeTasks, recordTask } from "../calibrate/calibrate.ts";
import { compileBundle } from "../compile/compile-bundle.ts";
import { expose } from "../expose/expose.ts";
import { readImage, readMask } from "../files/images.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { LazyPipeline } from "../model/open-folder.ts";
import { defaultSize } from "../model/picture-size.ts";
import { buildProfile } from "../profile/build-profile.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import type { TaskCase } from "../records/trajectory.ts";
import type { BuildConfig } from "../settings/config.ts";
import { withoutUndefined } from "../settings/without-undefined.ts";
import { tuneProfile } from "../tune/tune-profile.ts";
import { HashCache } from "../work/hash-tree.ts";
import type { StageOptions } from "../work/progress.ts";
import { removeStale, runStage, type StageResult } from "../work/stage.ts";
import { adaptersToDistill, distillStages } from "./distill-stages.ts";

/** How a caller follows and stops a build. */
export interface BuildOptions extends StageOptions {
  /** Told of every stage when it is done or found done. */
  onStage?: (name: string, result: StageResult) => void;
  onWarning?: (text: string) => void;
}

/** What {@link build} wrote, and what became of each stage. */
export interface BuildResult {
  out: string;
  profile: Profile;
  /** The bundle's adapters, with those that were added to it later. */
  adapters: AdapterRecord[];
  /** The base task's quality in the bundle. */
  base: BundleQuality | undefined;
  stages: Record<string, StageResult>;
}

/** Runs stages in a work folder, one after another, and keeps their results. */
function stageRunner(work: string, options: BuildOptions) {
  const stages: Record<string, StageResult> = {};
  const stage = async (
    label: string,
    name: string,
    inputs: unknown,
    run: (folder: string) => Promise<void>,
    isValid?: (folder: string) => Promise<boolean>,
  ) => {
    options.signal?.throwIfAborted();
    const result = await runStage(work, name, inputs, run, isValid);
    stages[label] = result;
    options.onStage?.(label, result);
    return result;
  };
  return { stages, stage };
}

function commonOf({ signal, onProgress }: StageOptions): StageOptions {
  return { signal, onProgress };
}

/** What the stages up to calibration leave in the work folder. */
export interface Calibration {
  /** Exposed folder. */
  exposed: string;
  /** Trajectory files in the order of the configuration's tasks. */
  trajectories: string[];
  /** By task: hash of the exposed folder, the task's settings and its pictures. */
  recordKeys: Readonly<Record<string, string>>;
  observed: StageResult;
  /** Observations file. */
  observations: string;
  hashes: HashCache;
}

/** The stage expose of a configuration, or its result where that is there. */
export async function exposeConfigured(
  config: BuildConfig,
  options: BuildOptions = {},
  { stage }: Pick<ReturnType<typeof stageRunner>, "stage"> = stageRunner(config.work!, options),
): Promise<{ exposed: string; key: string; hashes: HashCache }> {
  const hashes = await HashCache.open(join(config.work!, "hashes.json"));
  const sources = {
    model: await hashModel(config.model, hashes),
    adapters: await Promise.all(
      Object.entries(config.adapters).map(async ([name, path]) => [name, await hashes.hash(path)]),
    ),
  };
  await hashes.save();
  const { folder, key } = await stage("expose", "expose", sources, async (temporary) => {
    await expose(config.model, {
      out: join(temporary, "exposed"),
      adapters: config.adapters,
      signal: options.signal,
      onProgress: options.onProgress,
    });
  });
  return { exposed: join(folder, "exposed"), key, hashes };
}

/** The stages expose -> record -> observe of a configuration: all that profiles are made from. */
export async function calibrateConfigured(
  config: BuildConfig,
  options: BuildOptions = {},
  runner: ReturnType<typeof stageRunner> = stageRunner(config.work!, options),
): Promise<Calibration> {
  const { stage } = runner;
  const common = commonOf(options);
  const { exposed: exposedFolder, key, hashes } = await exposeConfigured(config, options, runner);

  const trajectories: string[] = [];
  const recordKeys: Record<string, string> = {};
  const pipeline = new LazyPipeline(exposedFolder);
  try {
    for (const [task, settings] of Object.entries(config.tasks)) {
      const files = settings.calibration
        .flatMap(({ image, mask }) => [image, mask])
        .filter((path) => path !== undefined);
      const pictures = await Promise.all(files.map((path) => hashes.hash(path)));
      const recorded = await stage(
        `record ${task}`,
        `record-${task}`,
        { exposed: key, settings: withoutPaths(settings), pictures },
        async (folder) => {
          const file = join(folder, "trajectory.safetensors");
          await recordConfigured(await pipeline.open(), task, settings, file, common);
        },
      );
      trajectories.push(join(recorded.folder, "trajectory.safetensors"));
      recordKeys[task] = recorded.key;
    }
  } finally {
    await pipeline.dispose();
  }

  const observedFrom = { recordKeys: Object.values(recordKeys), observe: config.observe };
  const observed = await stage("observe", "observe", observedFrom, async (folder) => {
    await observeTasks(exposedFolder, trajectories, join(folder, "observations.safetensors"), {
      ...common,
      ...withoutUndefined(config.observe),
    });
  });
  await hashes.save();
  return {
    exposed: exposedFolder,
    trajectories,
    recordKeys,
    observed,
    observations: join(observed.folder, "observations.safetensors"),
    hashes,
  };
}

/**
 * Stage after stage from a configuration to a bundle: expose -> record -> observe -> profile -> tune (where it is on) ->
 * distill -> compile. Results of unchanged stages are used again; an interrupted build continues where it stopped.
 */
export async function build(config: BuildConfig, options: BuildOptions = {}): Promise<BuildResult> {
  const work = config.work!;
  const runner = stageRunner(work, options);
  const { stages, stage } = runner;
  const common = commonOf(options);
  const calibration = await calibrateConfigured(config, options, runner);
  const { exposed: exposedFolder, trajectories, observed, observations, hashes } = calibration;

  const profiled = await stage(
    "profile",
    "profile",
    { observed: observed.key, policy: config.policy, target: config.target },
    async (folder) => {
      await buildProfile({
        exposed: exposedFolder,
        trajectories,
        observations,
        out: join(folder, "profile.json"),
        policy: config.policy,
        placement: config.target,
        ...common,
      });
    },
  );
  // When it is off, later stages have the keys that they had before there was this one.
  const tuned =
    config.tune.steps === 0
      ? null
      : await stage("tune", "tune", { profiled: profiled.key, settings: config.tune }, async (folder) => {
          await tuneProfile({
            exposed: exposedFolder,
            profile: join(profiled.folder, "profile.json"),
            trajectories,
            out: join(folder, "profile.json"),
            settings: config.tune,
            checkpoints: join(work, "checkpoints"),
            ...common,
          });
        });
  const chosen = tuned ?? profiled;
  const profile = join(chosen.folder, "profile.json");

  const names = adaptersToDistill(config, await readProfile(profile));
  const distilled =
    names.length === 0
      ? null
      : await distillStages(
          { distill: config.distill, work },
          {
            ...{ exposed: exposedFolder, profile, names, key: chosen.key, recordKeys: calibration.recordKeys, stage },
            cases: (task) => loadCases(exposedFolder, config.tasks[task]),
            ...common,
          },
        );

  await stage(
    "compile",
    "compile",
    { profiled: chosen.key, ...(distilled ? { distilled: distilled.key } : {}), out: config.out },
    async (folder) => {
      const { lost, adapters } = await compileBundle({
        exposed: exposedFolder,
        profile,
        out: config.out,
        target: config.target,
        trajectories,
        ...(distilled ? { adapters: distilled.folder } : {}),
        ...common,
      });
      if (lost.length > 0) {
        options.onWarning?.(
          `${config.out}: the graph or the profile changed, and ${lost.join(", ")} had been added for the old one: run quad add again`,
        );
      }
      await noteBundle(
        folder,
        config.out,
        adapters.map(({ name }) => name),
      );
    },
    // The bundle lies outside the work folder and may have been removed or replaced since.
    (folder) => isBundleAsWritten(folder, config.out),
  );

  await hashes.save();
  await removeStale(work, Object.values(stages));
  const { base } = await readManifest(config.out);
  return {
    out: config.out,
    profile: await readProfile(profile),
    adapters: await readRecords(config.out),
    base,
    stages,
  };
}

/** Hashes of what `expose` takes over from a model folder. */
async function hashModel(folder: string, hashes: HashCache): Promise<unknown> {
  const { entries } = await openModelFolder(folder);
  return Promise.all(entries.map(async (name) => [name, await hashes.hash(join(folder, name))]));
}

/** A task's settings without paths: pictures enter a stage's key by content. */
function withoutPaths({ evaluation: _, ...settings }: BuildConfig["tasks"][string]): unknown {
  return {
    ...settings,
    calibration: settings.calibration.map(({ image, mask, ...rest }) => ({ ...rest, image: !!image, mask: !!mask })),
  };
}

/**
 * Records a task as a configuration describes it.
 * @param exposed - the folder, or its pipeline where it is open already
 */
export async function recordConfigured(
  exposed: string | Pipeline,
  task: string,
  settings: BuildConfig["tasks"][string],
  file: string,
  options: StageOptions,
): Promise<void> {
  await recordTask(exposed, task, await loadCases(exposed, settings), file, options);
}

/** Reads a task's calibration pictures, in the size that the model draws: that of a folder or of an open pipeline. */
export async function loadCases(
  exposed: string | Pipeline,
  settings: BuildConfig["tasks"][string],
): Promise<TaskCase[]> {
  const size = typeof exposed === "string" ? await defaultSize(exposed) : exposed.defaultSize;
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
