import { existsSync } from "node:fs";
import { join } from "node:path";
import type { AdapterRecord, BundleQuality } from "@quad-lora/runtime";
import { readManifest, readRecords, refuseForeignBundle } from "../bundle/bundle-folder.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import type { BuildConfig } from "../settings/config.ts";
import { HashCache } from "../work/hash-tree.ts";
import { Plan } from "../work/plan.ts";
import { type PlanState, planState } from "../work/plan-state.ts";
import { Results } from "../work/results.ts";
import type { StageResult } from "../work/stage.ts";
import { observationsFile, trajectoryFile } from "./calibrate.ts";
import { planBuild, planCalibration, planExpose } from "./plan.ts";
import { profileFile } from "./profile.ts";
import { type BuildOptions, runInWorkFolder } from "./run.ts";

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

/**
 * From a configuration to a bundle, see `planBuild`. Results of unchanged stages are used again; an interrupted build continues
 * where it stopped.
 */
export async function build(config: BuildConfig, options: BuildOptions = {}): Promise<BuildResult> {
  // Told now, not after an hour of calibration.
  await refuseForeignBundle(config.out);
  return runInWorkFolder(
    config.work!,
    options,
    (hashes) => planBuild(config, hashes),
    async (stages, results) => {
      await results.keepOnly(Object.values(stages).map(({ folder }) => folder));
      const { base } = await readManifest(config.out);
      const profile = await readProfile(join((stages.tune ?? stages.profile).folder, profileFile));
      return { out: config.out, profile, adapters: await readRecords(config.out), base, stages };
    },
  );
}

/** What {@link build} would do: its steps, and which of them are done. Writes nothing but hashes of files that it read. */
export async function planOfBuild(config: BuildConfig): Promise<PlanState> {
  const hashes = await HashCache.open(join(config.work!, "hashes.json"));
  const plan = await planBuild(config, hashes);
  const state = await planState(plan, new Results(config.work!));
  await hashes.save();
  return state;
}

/** The stage expose of a configuration, or its result where that is there. */
export async function exposeConfigured(config: BuildConfig, options: BuildOptions = {}): Promise<{ exposed: string }> {
  return runInWorkFolder(
    config.work!,
    options,
    async (hashes) => {
      const plan = new Plan();
      await planExpose(plan, config, hashes);
      return plan;
    },
    async ({ expose }) => ({ exposed: join(expose.folder, "exposed") }),
  );
}

/** What the stages up to calibration leave in the work folder. */
export interface Calibration {
  /** Exposed folder. */
  exposed: string;
  /** Trajectory files in the order of the configuration's tasks. */
  trajectories: string[];
  observed: StageResult;
  /** Observations file. */
  observations: string;
  hashes: HashCache;
}

/** The stages expose -> record -> observe of a configuration: all that profiles are made from. */
export async function calibrateConfigured(config: BuildConfig, options: BuildOptions = {}): Promise<Calibration> {
  const hashes = await HashCache.open(join(config.work!, "hashes.json"));
  return runInWorkFolder(
    config.work!,
    options,
    () => planOfCalibration(config, hashes),
    async ({ expose, observe, ...others }) => ({
      exposed: join(expose.folder, "exposed"),
      trajectories: Object.keys(config.tasks).map((task) => join(others[`record ${task}`].folder, trajectoryFile)),
      observed: observe,
      observations: join(observe.folder, observationsFile),
      hashes,
    }),
  );
}

/** The observations file of a configuration's calibration, where it is done and nothing that it depends on has changed. */
export async function findObservations(config: BuildConfig): Promise<string | null> {
  const pictures = Object.values(config.tasks).flatMap(({ calibration }) =>
    calibration.flatMap((one) => [one.image, one.mask]),
  );
  const sources = [config.work, config.model, ...Object.values(config.adapters), ...pictures];
  if (!sources.every((path) => path === undefined || existsSync(path))) return null;
  const hashes = await HashCache.open(join(config.work!, "hashes.json"));
  const plan = await planOfCalibration(config, hashes);
  const folder = new Results(config.work!).find("observe", plan.keyOf("observe"));
  return folder && join(folder, observationsFile);
}

async function planOfCalibration(config: BuildConfig, hashes: HashCache): Promise<Plan> {
  const plan = new Plan();
  await planCalibration(plan, config, hashes);
  return plan;
}
