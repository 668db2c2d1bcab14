import { createReadStream, existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import type { AdapterRecord } from "@quad-lora/runtime";
import { type FrozenBundle, measureEncoded, openFrozen, writeEncoded } from "../bundle/bundle-adapters.ts";
import { bundleFiles, readRecords } from "../bundle/bundle-folder.ts";
import { type EncodedFiles, encodeForBundle } from "../bundle/encode-adapter.ts";
import { recordTrajectory } from "../calibrate/record-trajectory.ts";
import type { DistillAdapterResult } from "../distill/index.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { readFactorFile } from "../factors/factor-file.ts";
import { writeFileAtomically } from "../files/atomic.ts";
import { openFolder } from "../model/open-folder.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import type { BuildConfig } from "../settings/config.ts";
import { loadCases } from "../tasks/cases.ts";
import type { HashCache } from "../work/hash-tree.ts";
import { fileReference, Plan } from "../work/plan.ts";
import type { StageOptions } from "../work/progress.ts";
import { exposeConfigured } from "./build.ts";
import { readGain } from "./distill.ts";
import { adaptersToDistill, exposedReference, planDistillation } from "./plan.ts";
import { runInWorkFolder } from "./run.ts";

interface CommonOptions extends StageOptions {
  /** Tasks to draw, and `distill` settings. */
  config: BuildConfig;
  /** Default: those that `config.distill.adapters` says. */
  names?: readonly string[];
  /** Folder of pictures and captions in place of the teacher's own; for one adapter. */
  dataset?: string;
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
  const records = await writeEncoded(frozen, encoded);
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
  const { rank, tensors } = await readFactorFile(file);
  const encoded = await encodeForBundle(name, { rank, tensors, source }, frozen, {
    align: false,
    withoutSlot,
    task,
    signal,
    onProgress,
  });
  const cases = await loadCases(exposed, config.tasks[name]);
  const reference = await openFolder(exposed);
  try {
    const trajectory = await recordTrajectory(reference, name, cases, {
      stage: `drawing ${name} in full precision`,
      signal,
      onProgress,
    });
    encoded.record.fit.measured = await measureEncoded(frozen, name, encoded, trajectory, { signal });
  } finally {
    await reference.dispose();
  }
  return encoded;
}

/** The teachers of all adapters, then their training. What is done stays in `work`; the factors and their curves go to `out`. */
async function drawAndTrain(
  { config, exposed, profile, out, dataset, signal, onProgress }: DistillConfiguredOptions,
  names: readonly string[],
  work: string,
): Promise<DistillAdapterResult[]> {
  const plan = async (hashes: HashCache) => {
    const planned = new Plan();
    const references = await Promise.all(names.map((name) => exposedReference(exposed, name, hashes)));
    await planDistillation(planned, config, hashes, names, {
      exposed: (name) => references[names.indexOf(name)],
      model: exposed,
      profile: await fileReference(profile, hashes),
      dataset: dataset === undefined ? undefined : { model: config.model, folder: dataset },
    });
    return planned;
  };
  return runInWorkFolder(work, { signal, onProgress }, plan, (stages) =>
    Promise.all(names.map(async (name) => takeFactors(await readGain(stages[`distill ${name}`].folder), out))),
  );
}

/** Copies what a distillation wrote, the factors last. */
async function takeFactors(gain: DistillAdapterResult, out: string): Promise<DistillAdapterResult> {
  const take = async (from: string) => {
    const path = join(out, basename(from));
    await writeFileAtomically(path, createReadStream(from));
    return path;
  };
  const curvePath = await take(gain.curvePath);
  return { ...gain, curvePath, file: await take(gain.file) };
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
