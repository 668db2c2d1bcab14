import { existsSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { possibleGraphFiles } from "../model/graph-files.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import type { BuildConfig } from "../settings/config.ts";
import type { DistillSettings } from "../settings/distill.ts";
import type { TaskSettings } from "../tasks/cases.ts";
import type { HashCache } from "../work/hash-tree.ts";
import {
  type FileReference,
  fileReference,
  type Needs,
  Plan,
  type Planned,
  type ResultReference,
} from "../work/plan.ts";
import type { Json } from "../work/stage.ts";
import { type CalibrationSettings, observationsFile, observeStage, recordStage, trajectoryFile } from "./calibrate.ts";
import { compileStage } from "./compile.ts";
import { distillStage, teacherStage } from "./distill.ts";
import { exposeStage } from "./expose.ts";
import { profileFile, profileStage, tuneStage } from "./profile.ts";

/** Something that a step takes from a file or from another step. */
export type Reference = FileReference | ResultReference;

/** What the steps up to calibration leave: all that profiles are made from. */
export interface PlannedCalibration {
  exposed: Reference;
  /** In the order of the configuration's tasks. */
  trajectories: Reference[];
  observations: Reference;
}

/** Adds the step expose. */
export async function planExpose(
  plan: Plan,
  { model, adapters }: Readonly<Pick<BuildConfig, "model" | "adapters">>,
  hashes: HashCache,
): Promise<Reference> {
  const files = await Promise.all(
    Object.entries(adapters).map(async ([name, path]) => [name, await namedReference(path, hashes)] as const),
  );
  const input = { model: await modelReference(model, hashes), adapters: Object.fromEntries(files) };
  return plan.add("expose", exposeStage, input)("exposed");
}

/** Adds the steps expose -> record of every task -> observe. */
export async function planCalibration(plan: Plan, config: BuildConfig, hashes: HashCache): Promise<PlannedCalibration> {
  const exposed = await planExpose(plan, config, hashes);
  const trajectories: Reference[] = [];
  for (const [task, settings] of Object.entries(config.tasks)) {
    const input = { exposed, task, settings: await plannedCases(settings, hashes) };
    trajectories.push(plan.add(`record ${task}`, recordStage, input)(trajectoryFile));
  }
  const observed = plan.add("observe", observeStage, { exposed, trajectories, settings: config.observe });
  return { exposed, trajectories, observations: observed(observationsFile) };
}

/**
 * The plan of a build: expose -> record -> observe -> profile -> tune (where it is on) -> teacher and distill of every adapter
 * that is to be tuned -> compile.
 */
export async function planBuild(config: BuildConfig, hashes: HashCache): Promise<Plan> {
  const plan = new Plan();
  const { exposed, trajectories, observations } = await planCalibration(plan, config, hashes);
  const { policy, target, tune } = config;
  let chosen = "profile";
  const made = plan.add(chosen, profileStage, { exposed, trajectories, observations, policy, placement: target });
  let profile: Reference = made(profileFile);
  if (tune.steps > 0) {
    chosen = "tune";
    profile = plan.add(chosen, tuneStage, { exposed, profile, trajectories, settings: tune })(profileFile);
  }
  const rest = async (names: readonly string[]) => {
    const sources = { exposed: () => exposed, model: config.model, profile };
    const distilled = await planDistillation(plan, config, hashes, names, sources);
    const adapters = distilled.map((label) => ({ $result: label, path: "" }));
    plan.add("compile", compileStage, { exposed, profile, trajectories, adapters, target, out: config.out });
  };
  const known = adaptersToDistill(config);
  if (known) await rest(known);
  else {
    plan.when(chosen, "distill, of the adapters that did not define the profile; compile", async (folder) =>
      rest(adaptersToDistill(config, await readProfile(join(folder, profileFile)))),
    );
  }
  return plan;
}

/** What adapters are tuned with and to. */
export interface DistillationSources {
  /** By adapter: another adapter's file is nothing that it depends on. */
  exposed(adapter: string): Reference;
  /** The exposed folder, or the model that it is made from: for its size. */
  model: string;
  profile: Reference;
  /** Plain model folder and pictures in place of the teacher's own. */
  dataset?: { model: string; folder: string };
}

/**
 * Adds the steps teacher of all adapters, which have the machine for themselves, then their steps distill, which may run side
 * by side.
 * @returns the labels of the steps distill
 */
export async function planDistillation(
  plan: Plan,
  { distill: settings, tasks }: Pick<BuildConfig, "distill" | "tasks">,
  hashes: HashCache,
  names: readonly string[],
  { exposed, model, profile, dataset }: DistillationSources,
): Promise<string[]> {
  const { pictures, seed, steps } = settings;
  const data = dataset && {
    model: await modelReference(dataset.model, hashes),
    folder: await fileReference(dataset.folder, hashes),
  };
  const trajectories = new Map<string, Reference>();
  for (const adapter of names) {
    const cases = await plannedCases(tasks[adapter], hashes);
    const input = { exposed: exposed(adapter), task: adapter, cases, settings: { pictures, seed }, dataset: data };
    trajectories.set(adapter, plan.add(`teacher ${adapter}`, teacherStage, input)(trajectoryFile));
  }
  const needs = names.length > 0 ? await distillationNeeds(model, settings) : undefined;
  return names.map((adapter) => {
    const label = `distill ${adapter}`;
    const input = { exposed: exposed(adapter), profile, adapter, trajectory: trajectories.get(adapter)!, settings };
    plan.add(label, distillStage, input, { needs, units: steps });
    return label;
  });
}

/** The adapters that a configuration wants tuned to a profile; null where only the profile says which these are. */
export function adaptersToDistill(config: Pick<BuildConfig, "adapters" | "distill">, profile: Profile): string[];
export function adaptersToDistill(config: Pick<BuildConfig, "adapters" | "distill">): string[] | null;
export function adaptersToDistill(
  { adapters, distill }: Pick<BuildConfig, "adapters" | "distill">,
  profile?: Profile,
): string[] | null {
  const names = Object.keys(adapters);
  if (distill.adapters === "none") return [];
  if (distill.adapters === "all" || names.length === 0) return names;
  return profile ? names.filter((name) => name !== profile.strategy.anchor) : null;
}

/** What `expose` takes over from a model folder. */
async function modelReference(folder: string, hashes: HashCache): Promise<FileReference> {
  const { entries } = await openModelFolder(folder);
  return { $file: folder, contents: await contentsOf(folder, entries, hashes) };
}

/** An exposed folder that no step of the plan makes, as far as one of its adapters depends on it. */
export async function exposedReference(folder: string, adapter: string, hashes: HashCache): Promise<FileReference> {
  const { entries } = await openModelFolder(folder);
  const used = [...entries, "slots.json", join("adapters", `${adapter}.safetensors`)];
  return { $file: folder, contents: await contentsOf(folder, used, hashes) };
}

async function contentsOf(folder: string, entries: readonly string[], hashes: HashCache): Promise<Json> {
  return Promise.all(entries.map(async (name) => [name, (await hashes.hash(join(folder, name))) as Json]));
}

/** An adapter's file: its name is written into what is made from it. */
async function namedReference(path: string, hashes: HashCache): Promise<FileReference> {
  const { contents } = await fileReference(path, hashes);
  return { $file: path, contents: [basename(path), contents] };
}

/** What of a task's settings decides what is drawn; pictures enter a key by content. */
async function plannedCases(
  { calibration, steps, guidance }: TaskSettings,
  hashes: HashCache,
): Promise<Planned<CalibrationSettings>> {
  const picture = async (path: string | undefined) => (path ? fileReference(path, hashes) : undefined);
  const cases = calibration.map(async ({ image, mask, ...rest }) => ({
    ...rest,
    image: await picture(image),
    mask: await picture(mask),
  }));
  return { calibration: await Promise.all(cases), steps, guidance };
}

/** Activations of a training step take several times the model's size. */
async function distillationNeeds(folder: string, { features, threads }: DistillSettings): Promise<Needs> {
  const { denoiser } = await openModelFolder(folder);
  const files = possibleGraphFiles(folder, denoiser).filter((path) => existsSync(path));
  const size = files.reduce((sum, path) => sum + statSync(path).size, 0);
  // The teacher of features is the model once more, with activations.
  const times = features > 0 ? 8 : 6;
  return { memory: 1e9 + times * size, threads };
}
