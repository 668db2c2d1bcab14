import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import type { AdapterRecord } from "@quad-lora/runtime";
import { type FrozenBundle, measureEncoded, openFrozen, writeEncoded } from "../bundle/bundle-adapters.ts";
import { bundleFiles, readRecords } from "../bundle/bundle-folder.ts";
import { type EncodedFiles, encodeForBundle } from "../bundle/encode-adapter.ts";
import { recordTrajectory } from "../calibrate/record-trajectory.ts";
import { type DistillAdapterResult, distillAdapters, recordDataset, recordTeacher } from "../distill/index.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { readFactorFile } from "../factors/factor-file.ts";
import { openFolder } from "../model/open-folder.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import type { BuildConfig } from "../settings/config.ts";
import { HashCache } from "../work/hash-tree.ts";
import { runStage } from "../work/stage.ts";
import { exposeConfigured, loadCases } from "./build.ts";
import { adaptersToDistill, describe } from "./distill-stages.ts";

interface CommonOptions {
  /** Tasks to draw, and `distill` settings. */
  config: BuildConfig;
  /** Default: those that `config.distill.adapters` says. */
  names?: readonly string[];
  /** Folder of pictures and captions in place of the teacher's own; for one adapter. */
  dataset?: string;
  signal?: AbortSignal;
  onProgress?: (stage: string, done: number, total: number, detail?: string) => void;
}

/** What {@link distillConfigured} reads and writes. */
export interface DistillConfiguredOptions extends CommonOptions {
  /** Folder written by `expose`: the teacher, and the factors to start from. */
  exposed: string;
  /** Profile file made from it. */
  profile: string;
  /** Folder for the distilled factors, `ADAPTER.safetensors`. */
  out: string;
}

/** What {@link distillBundle} reads and changes. */
export interface DistillBundleOptions extends CommonOptions {
  bundle: string;
  /** The exposed folder that the bundle was compiled from; default: the one of the configuration's build, made if need be. */
  against?: string;
}

/** What a distillation of a bundle's adapters gained. */
export interface DistillBundleResult {
  distilled: DistillAdapterResult[];
  /** The bundle's new records. */
  records: AdapterRecord[];
}

/**
 * Tunes adapters of an exposed folder to a profile: the teacher draws each one's task, then all are trained. An interrupted
 * run goes on from its checkpoints in `OUT/.work`, which is gone when all is done.
 * @throws InputError for names without adapter or task, and a profile of another graph
 */
export async function distillConfigured(options: DistillConfiguredOptions): Promise<DistillAdapterResult[]> {
  const work = join(options.out, ".work");
  const profile = await readProfile(options.profile);
  await (await ExposedModel.open(options.exposed)).refuse(profile, options.profile);
  const results = await drawAndTrain(options, namesOf(options, profile), work);
  await rm(work, { recursive: true, force: true });
  return results;
}

/**
 * Tunes adapters of a finished bundle to its own frozen profile, and writes their codes, records and measured fit in place of
 * those that were there. Every other file of the bundle stays as it is, and until all is trained, encoded and measured so do
 * these. An interrupted run goes on from its checkpoints in the configuration's work folder.
 * @throws InputError for adapters that bundle, exposed folder and configuration do not all have, and for an exposed folder
 *   that the bundle was not compiled from
 */
export async function distillBundle(options: DistillBundleOptions): Promise<DistillBundleResult> {
  const { config, signal, onProgress } = options;
  const common = { signal, onProgress };
  const frozen = await openFrozen(options.bundle);
  const { bundle, profile: frozenProfile } = frozen;
  const names = namesOf(options, frozenProfile);
  const known = new Map((await readRecords(bundle)).map((record) => [record.name, record]));
  for (const name of names) refuseUnknown(name, join(bundle, bundleFiles.adapters), [...known.keys()]);
  const exposed = options.against ?? (await exposeConfigured(config, common)).exposed;
  const profile = join(bundle, bundleFiles.profile);
  const fix =
    options.against === undefined
      ? "The configuration's model or adapters are others now: build again, or give the folder that it was compiled from with --against."
      : "Give the exposed folder that the bundle was compiled from with --against.";
  await (await ExposedModel.open(exposed)).refuse(frozenProfile, profile, fix);
  for (const name of names) {
    const file = join(exposed, "adapters", `${name}.safetensors`);
    if (!existsSync(file)) throw new InputError({ what: `the exposed folder has no adapter "${name}"`, file });
  }

  // Not named after a hash: a build removes those that are not its own.
  const work = join(config.work!, "distill-bundle");
  const out = join(work, "out");
  const distilled = await drawAndTrain({ ...options, exposed, profile, out }, names, work);
  const encoded: EncodedFiles[] = [];
  for (const name of names) {
    encoded.push(await encodeDistilled(frozen, known.get(name)!, join(out, `${name}.safetensors`), options, exposed));
  }
  signal?.throwIfAborted();
  const records: AdapterRecord[] = [];
  for (const files of encoded) records.push(await writeEncoded(frozen, files));
  await rm(work, { recursive: true, force: true });
  return { distilled, records };
}

/** Codes of trained factors with the record's new figures; what the record says beyond them stays. */
async function encodeDistilled(
  frozen: FrozenBundle,
  before: AdapterRecord,
  file: string,
  { config, signal, onProgress }: CommonOptions,
  exposed: string,
): Promise<EncodedFiles> {
  const { name, source, task, withoutSlot } = before;
  const common = signal ? { signal } : {};
  const { rank, tensors } = await readFactorFile(file);
  const encoded = await encodeForBundle(name, { rank, tensors, source }, frozen, {
    ...{ align: false, withoutSlot, ...common, ...(task ? { task } : {}) },
    onProgress: (done, total) => onProgress?.(`encoding ${name}`, done, total),
  });
  const cases = await loadCases(exposed, config.tasks[name]);
  const reference = await openFolder(exposed);
  try {
    const trajectory = await recordTrajectory(reference, name, cases, {
      ...common,
      onProgress: (done, total) => onProgress?.(`drawing ${name} in full precision`, done, total),
    });
    encoded.record.fit.measured = await measureEncoded(frozen, name, encoded, trajectory, common);
  } finally {
    await reference.dispose();
  }
  return encoded;
}

/** The teachers of all adapters, then their training. What is done stays in `work`. */
async function drawAndTrain(
  { config, exposed, profile: profileFile, out, dataset, signal, onProgress }: DistillConfiguredOptions,
  names: readonly string[],
  work: string,
): Promise<DistillAdapterResult[]> {
  const settings = config.distill;
  const { pictures, seed } = settings;
  const common = { signal, onProgress };
  const hashes = await HashCache.open(join(work, "hashes.json"));
  const graph = await (await ExposedModel.open(exposed)).identity();
  const jobs = [];
  for (const name of names) {
    const task = config.tasks[name];
    const files = task.calibration.flatMap(({ image, mask }) => [image, mask]).filter((path) => path !== undefined);
    const factors = await hashes.hash(join(exposed, "adapters", `${name}.safetensors`));
    const drawn = await Promise.all(files.map((path) => hashes.hash(path)));
    const data = dataset === undefined ? null : await hashes.hash(dataset);
    const inputs = { graph, name, task, pictures, seed, factors, drawn, data };
    const { folder } = await runStage(work, `teacher-${name}`, inputs, async (teacher) => {
      const file = join(teacher, "trajectory.safetensors");
      if (dataset !== undefined) await recordDataset(config.model, exposed, name, dataset, file, settings, common);
      else await recordTeacher(exposed, name, await loadCases(exposed, task), file, settings, common);
    });
    const trajectory = join(folder, "trajectory.safetensors");
    jobs.push({
      ...{ exposed, profile: profileFile, adapter: name, settings, trajectory, out },
      checkpoints: join(work, "checkpoints"),
    });
  }
  await hashes.save();
  return distillAdapters(jobs, {
    signal,
    onProgress: (progress) => onProgress?.("distilling", progress.done, progress.total, describe(progress)),
  });
}

function namesOf({ config, names, dataset }: CommonOptions, profile: Profile): readonly string[] {
  const chosen = names ?? adaptersToDistill(config, profile);
  for (const name of chosen) {
    refuseUnknown(
      name,
      "configuration",
      Object.keys(config.adapters).filter((adapter) => adapter in config.tasks),
    );
  }
  if (dataset === undefined || chosen.length === 1) return chosen;
  throw new InputError({
    what: "a folder of pictures is for one adapter",
    file: resolve(dataset),
    got: chosen.join(", ") || "none",
    fix: "Name it with --adapter.",
  });
}

function refuseUnknown(name: string, file: string, known: readonly string[]): void {
  if (known.includes(name)) return;
  throw new InputError({
    what: `there is no adapter "${name}"`,
    file,
    where: "adapters",
    expected: known.join(", ") || "none",
  });
}
