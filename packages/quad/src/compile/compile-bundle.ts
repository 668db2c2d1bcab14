import { cp } from "node:fs/promises";
import { join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import {
  checkModel,
  commonSubexpressions,
  constantFolding,
  deadCodeElimination,
  identityRemoval,
  type Model,
  runPasses,
  saveModel,
} from "@quad-lora/onnx";
import {
  type AdapterRecord,
  adapterRecordText,
  type BundleManifest,
  type BundleQuality,
  type SlotsFile,
} from "@quad-lora/runtime";
import { type AdapterSource, loadAdapters } from "../bundle/adapter-sources.ts";
import { keepAddedAdapters } from "../bundle/added-adapters.ts";
import { bundleFiles, recordFiles, refuseForeignBundle } from "../bundle/bundle-folder.ts";
import { copyRest } from "../bundle/copied-files.ts";
import { type EncodingFrame, encodeForBundle } from "../bundle/encode-adapter.ts";
import { measureQuality } from "../bundle/quality.ts";
import { writeAimet } from "../encodings-files/index.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { writeFileAtomically } from "../files/atomic.ts";
import { hashFile } from "../files/hash.ts";
import { writeRecord } from "../files/json.ts";
import { replaceFolder } from "../files/replace-folder.ts";
import { componentFile, graphIdentity } from "../model/graph-files.ts";
import { openFolder } from "../model/open-folder.ts";
import { aimetEncodings } from "../profile/export-encodings.ts";
import { type Profile, pointEncoding, readProfile } from "../records/profile.ts";
import { readTrajectory } from "../records/trajectory.ts";
import { type TargetName, targetNamed } from "../targets/index.ts";
import type { Target } from "../targets/target.ts";
import { keepTasks } from "../tasks/keep-tasks.ts";
import type { StageOptions } from "../work/progress.ts";
import { ownZeroPoints } from "./own-zero-points.ts";
import { buildQuantizedGraph } from "./quantized-graph.ts";

/** What {@link compileBundle} reads and writes. */
export interface CompileOptions extends StageOptions {
  /** Exposed folder that the profile was made for. */
  exposed: string;
  /** `profile.json`. */
  profile: string;
  /** Folder to write; a bundle there is replaced. */
  out: string;
  /** What the profile was made for: another target needs another profile. */
  target: TargetName;
  /** Rank that the graph takes, where the target's is fixed; default: the profile's. */
  rank?: number;
  /** Folders with distilled factors: they replace the exposed folder's of the same names, and are not aligned again. */
  adapters?: readonly string[];
  /** Recorded trajectories: the bundle is run on them, to say how well every task fits. */
  trajectories?: readonly string[];
  /** Calls per task that the fit is measured over. */
  qualityCalls?: number;
}

/** What {@link compileBundle} wrote. */
export interface CompileResult {
  out: string;
  manifest: BundleManifest;
  adapters: AdapterRecord[];
  /** Adapters that had been added to the bundle that was replaced, and were encoded for its graph and profile: set aside, see `setAsideFolder`. */
  lost: string[];
}

/**
 * Stage: exposed folder and profile -> bundle. One quantized graph, the adapters as integer codes on its scales, and a
 * manifest of everything. The folder appears under its name only when complete; same input, same bytes.
 * @throws InputError when the profile belongs to another graph or target, or `out` exists and is not a bundle
 */
export async function compileBundle(options: CompileOptions): Promise<CompileResult> {
  const out = resolve(options.out);
  await refuseForeignBundle(out);
  const profile = await readProfile(options.profile);
  const exposed = await ExposedModel.open(resolve(options.exposed));
  await refuseForeignProfile(profile, options, exposed);
  const target = targetNamed(options.target);
  const rank = target.hasFixedRank ? fixedRank(options, profile, exposed.slotsFile) : null;

  const lost: string[] = [];
  const write = async (temporary: string) => {
    const { slots, operators } = await writeGraph(temporary, exposed, profile, { target, rank }, options);
    const adapters = await loadAdapters(exposed.folder, options.adapters);
    await keepTasks(temporary, [...adapters.keys()]);
    const identity = {
      graph: await graphIdentity(temporary, exposed.component),
      profile: await hashFile(join(temporary, bundleFiles.profile)),
    };
    const records = await writeAdapters(temporary, adapters, { slots, profile, identity }, options);
    const qualities = await measureTasks(temporary, profile, options);
    await writeRecords(temporary, records, qualities);
    const base = qualities.get("base");
    const manifest: BundleManifest = {
      format: "quad-bundle",
      version: 1,
      target: { kind: target.name, ...(rank === null ? {} : { rank }), operators },
      component: exposed.component,
      ...identity,
      ...(base ? { base } : {}),
      files: await recordFiles(temporary, options.signal),
    };
    await writeRecord(join(temporary, bundleFiles.manifest), manifest);
    options.signal?.throwIfAborted();
    return { out: options.out, manifest, adapters: records, lost };
  };
  return replaceFolder(out, write, async (temporary, { manifest }) => {
    lost.push(...(await keepAddedAdapters(out, temporary, manifest)));
  });
}

/** Writes everything but the adapters and what is said about them: graphs, slots, profile, encodings. Returns the slots, and what the graph needs of a runtime. */
async function writeGraph(
  folder: string,
  exposed: ExposedModel,
  profile: Profile,
  { target, rank }: { target: Target; rank: number | null },
  options: CompileOptions,
): Promise<{ slots: SlotsFile; operators: string[] }> {
  const { component, slots, slotsFile } = exposed;
  const stage = "compiling the graph";
  options.onProgress?.(stage, 0, 3);
  const prepared = await exposed.prepare(profile.shape);
  const encodings = aimetEncodings(prepared, slots, profile);
  options.signal?.throwIfAborted();
  const model = await quantizedGraph(prepared, slots, profile, target, rank);
  options.onProgress?.(stage, 1, 3);
  options.signal?.throwIfAborted();
  await simplify(model);
  checkModel(model);
  options.onProgress?.(stage, 2, 3);
  options.signal?.throwIfAborted();
  await copyRest(exposed.folder, component, folder);
  await saveModel(model, componentFile(folder, component), { signal: options.signal });
  options.onProgress?.(stage, 3, 3);

  const elementType = profile.policy.adapterBits === 8 ? "int8" : "int16";
  const components = { ...slotsFile.components, [component]: { ...slots, elementType } as const };
  const written: SlotsFile = {
    ...slotsFile,
    rank: rank === null ? slotsFile.rank : { kind: "fixed", rank },
    components,
  };
  await writeRecord(join(folder, bundleFiles.slots), written);
  await cp(options.profile, join(folder, bundleFiles.profile), { dereference: true });
  await writeFileAtomically(join(folder, bundleFiles.encodings), writeAimet(encodings, "2.0.0"));
  return { slots: written, operators: usedOperators(model, target) };
}

function quantizedGraph(
  prepared: Model,
  slots: SlotsFile["components"][string],
  profile: Profile,
  target: Target,
  rank: number | null,
): Promise<Model> {
  const { adapterBits, weightBits, weightMethod } = profile.policy;
  return buildQuantizedGraph(prepared, slots, {
    points: new Map(Object.entries(profile.points).map(([name, point]) => [name, pointEncoding(point)])),
    slots: new Map(Object.entries(profile.slots)),
    ...{ adapterBits, weightBits, weightMethod },
    narrowLayers: new Set(profile.narrowLayers),
    target,
    rank,
  });
}

async function refuseForeignProfile(profile: Profile, options: CompileOptions, exposed: ExposedModel): Promise<void> {
  const file = options.profile;
  await exposed.refuse(profile, file, "Run quad calibrate and quad profile on this exposed folder.");
  if (profile.placement !== options.target) {
    throw new InputError({
      what: "the profile was made for another target",
      file,
      where: "placement",
      expected: options.target,
      got: profile.placement,
      fix: `Set "target": "${options.target}" in the configuration and run quad profile again.`,
    });
  }
}

/** A graph of fixed rank takes all adapters there are. */
function fixedRank({ rank, exposed }: CompileOptions, profile: Profile, file: SlotsFile): number {
  const needed = profile.rank;
  const wanted = rank ?? (file.rank.kind === "fixed" ? Math.max(file.rank.rank, needed) : needed);
  if (wanted < needed) {
    throw new InputError({
      what: "the adapters have a larger rank than the graph would take",
      file: exposed,
      expected: `at least ${needed}`,
      got: String(wanted),
      fix: `Use --rank ${needed} or more.`,
    });
  }
  return wanted;
}

/** Weights must stay integers: their DequantizeLinear depends on constants alone, and is not folded. Merging comes before {@link ownZeroPoints}. */
async function simplify(model: Model): Promise<void> {
  const keep = new Set(["QuantizeLinear", "DequantizeLinear"]);
  await runPasses(model, [identityRemoval, deadCodeElimination, constantFolding({ keep }), commonSubexpressions]);
  ownZeroPoints(model);
}

/** Those of the target's operators that the graph has, sorted. */
function usedOperators({ graph }: Model, { operators }: Target): string[] {
  const used = new Set([...graph.nodes].map(({ operator }) => operator));
  return operators.filter((operator) => used.has(operator)).sort();
}

async function writeAdapters(
  folder: string,
  adapters: ReadonlyMap<string, AdapterSource>,
  frame: EncodingFrame,
  { signal, onProgress }: CompileOptions,
): Promise<AdapterRecord[]> {
  const records: AdapterRecord[] = [];
  for (const [name, adapter] of adapters) {
    const { files, record } = await encodeForBundle(name, adapter, frame, {
      align: adapter.align && frame.profile.policy.align,
      signal,
      onProgress,
    });
    for (const [file, bytes] of files) {
      await writeFileAtomically(join(folder, bundleFiles.adapters, file), bytes);
    }
    records.push(record);
  }
  return records;
}

/** Runs the unfinished bundle on what full precision saw and said. */
async function measureTasks(
  folder: string,
  { component, shape }: Profile,
  { trajectories = [], qualityCalls = 32, signal, onProgress }: CompileOptions,
): Promise<Map<string, BundleQuality>> {
  const qualities = new Map<string, BundleQuality>();
  if (trajectories.length === 0) return qualities;
  // A fixed number of threads: sums of floats, and so the figures, depend on it.
  // The manifest comes last: it holds what is measured here.
  const pipeline = await openFolder(folder, { threads: 2, verify: false });
  try {
    for (const path of trajectories) {
      const trajectory = await readTrajectory(path);
      await pipeline.use(trajectory.task);
      const settings = { batch: shape.batch, calls: qualityCalls, signal };
      qualities.set(trajectory.task, await measureQuality(pipeline, component, trajectory, settings));
      onProgress?.("measuring the bundle", qualities.size, trajectories.length);
    }
  } finally {
    await pipeline.dispose();
  }
  return qualities;
}

/** Writes what is said about the adapters, with what was measured. */
async function writeRecords(
  folder: string,
  records: readonly AdapterRecord[],
  qualities: ReadonlyMap<string, BundleQuality>,
): Promise<void> {
  for (const record of records) {
    const measured = qualities.get(record.name);
    if (measured) record.fit.measured = measured;
    const file = join(folder, bundleFiles.adapters, `${record.name}.json`);
    await writeFileAtomically(file, await adapterRecordText(record));
  }
}
