import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { type AdapterRecord, type SlotsFile, type Task, tasksFileSchema } from "@quad-lora/runtime";
import { importAdapter } from "../adapters/import.ts";
import type { ImportedAdapter } from "../adapters/types.ts";
import { recordTrajectory } from "../calibrate/record-trajectory.ts";
import { distillNew } from "../distill/distill-new.ts";
import { type BoundAdapter, bindAdapter } from "../factors/bind-adapter.ts";
import { slotModules } from "../factors/slot-modules.ts";
import { readRecord } from "../files/json.ts";
import { defaultSize } from "../model/picture-size.ts";
import type { TaskCase, Trajectory } from "../records/trajectory.ts";
import type { DistillSettings } from "../settings/distill.ts";
import type { StageOptions } from "../work/progress.ts";
import { measureEncoded, openFrozen, writeEncoded } from "./bundle-adapters.ts";
import { bundleFiles } from "./bundle-folder.ts";
import { encodeForBundle } from "./encode-adapter.ts";
import { openReference } from "./reference-pipeline.ts";

/** What {@link addToBundle} encodes, into which bundle, and what it measures the fit on. */
export interface AddOptions extends StageOptions {
  bundle: string;
  /** LoRA file or PEFT folder. */
  adapter: string;
  /** Name of the adapter and of its task. */
  name: string;
  /** Defaults of the task; guidance and steps are the base's where left out. */
  task?: Omit<Task, "adapter">;
  /** Full-precision model folder, plain or exposed: the fit is then measured by running both. */
  against?: string;
  /** Tune the factors to the bundle's profile; `against` is then the exposed folder that the bundle was compiled from. */
  distill?: DistillSettings;
  /** What to measure on; default: the task's prompt with four seeds. */
  cases?: readonly TaskCase[];
  /** Take an adapter that has layers without a slot in the bundle. */
  partial?: boolean;
  /** Told what the user has to know of how the file was read, such as a change that was shortened. */
  onWarning?: (text: string) => void;
}

const defaultCases = 4;

/**
 * Encodes a new adapter against a bundle's frozen graph and profile. Writes `adapters/NAME.*` and touches nothing else.
 * @throws InputError if the name is taken, the adapter has layers without a slot (unless `partial`), or its rank exceeds a
 *   fixed one
 */
export async function addToBundle(options: AddOptions): Promise<AdapterRecord> {
  const { name, signal } = options;
  const frozen = await openFrozen(options.bundle);
  const { bundle, profile, slots } = frozen;
  refuseTakenName(options);
  const imported = await importAdapter(options.adapter, slotModules(slots), { name });
  for (const text of imported.report.warnings) options.onWarning?.(`adapter "${name}": ${text}`);
  refuseLargeRank(imported, slots);
  const withoutSlot = lostKeys(imported);
  if (withoutSlot.length > 0 && !options.partial) refusePartial(imported, withoutSlot);
  const task = await taskOf(options, bundle);

  const bound = bindAdapter(imported.layers, slots.components);
  const { rank, tensors } = options.distill
    ? await distilled(options, options.distill, bound, task)
    : {
        rank: bound.rank,
        tensors: new Map(bound.tensors.map((tensor) => [tensor.name, tensor.data as Float32Array])),
      };
  const encoded = await encodeForBundle(name, { rank, tensors, source: basename(options.adapter) }, frozen, {
    align: profile.policy.align && !options.distill,
    task,
    withoutSlot,
    signal,
    onProgress: options.onProgress,
  });
  if (options.against !== undefined) {
    const trajectory = await drawReference(options, options.against, task);
    encoded.record.fit.measured = await measureEncoded(frozen, name, encoded, trajectory, { signal });
  }
  signal?.throwIfAborted();
  const [record] = await writeEncoded(frozen, [encoded], () => refuseTakenName(options));
  return record;
}

/** The factors tuned to the bundle's profile. */
async function distilled(options: AddOptions, settings: DistillSettings, bound: BoundAdapter, task: Task) {
  const { bundle, against, name, adapter, signal, onProgress } = options;
  if (against === undefined) {
    throw new InputError({
      what: "distillation needs the full-precision model to learn from",
      fix: "Give the exposed folder that the bundle was compiled from with --against.",
    });
  }
  const defaults = { ...defaultsOf(task), ...(await defaultSize(bundle)) };
  return distillNew({
    ...{ exposed: against, profile: join(resolve(bundle), bundleFiles.profile), name, bound, settings },
    openTeacher: () => openReference(against, name, adapter),
    cases: (options.cases ?? [{}]).map((own) => ({ ...defaults, ...own })),
    signal,
    onProgress,
  });
}

function defaultsOf({ prompt, negativePrompt, steps, guidance }: Task): TaskCase {
  return {
    ...(prompt !== undefined ? { prompt } : {}),
    ...(negativePrompt !== undefined ? { negativePrompt } : {}),
    ...(steps !== undefined ? { steps } : {}),
    ...(guidance !== undefined ? { guidance } : {}),
  };
}

function refuseTakenName({ bundle, name }: AddOptions): void {
  if (!/^[\w.-]+$/.test(name) || name === "base") {
    throw new InputError({
      what: "is not a name for an adapter",
      got: `"${name}"`,
      expected: 'letters, digits, dots, dashes and underscores, and not "base"',
    });
  }
  const file = join(bundle, bundleFiles.adapters, `${name}.json`);
  if (!existsSync(file)) return;
  throw new InputError({
    what: "the bundle has an adapter of this name",
    file,
    fix: "Choose another --task, or remove this adapter's files first.",
  });
}

function lostKeys({ report }: ImportedAdapter): string[] {
  return [...report.unmatched, ...report.mismatched].map(({ key }) => key);
}

function refusePartial({ source, report }: ImportedAdapter, lost: readonly string[]): void {
  const shown = lost.slice(0, 3).join(", ");
  throw new InputError({
    what: `${lost.length} of the adapter's ${lost.length + report.matched.length} keys have no slot in this bundle`,
    file: source,
    where: lost.length > 3 ? `${shown}, ...` : shown,
    fix: "Build a bundle with this adapter among the others, or take what fits with --partial.",
  });
}

function refuseLargeRank({ source, report }: ImportedAdapter, { rank }: SlotsFile): void {
  if (rank.kind === "dynamic" || report.rankMax <= rank.rank) return;
  throw new InputError({
    what: "the adapter's rank exceeds that of the bundle's graph",
    file: source,
    expected: `at most ${rank.rank}`,
    got: String(report.rankMax),
    fix: `Compile the bundle again with --rank ${report.rankMax}, or reduce the adapter's rank.`,
  });
}

async function taskOf({ name, task = {} }: AddOptions, bundle: string): Promise<Task> {
  const path = join(bundle, bundleFiles.tasks);
  const tasks = existsSync(path) ? (await readRecord(path, tasksFileSchema)).tasks : {};
  const { guidance, steps } = tasks.base ?? {};
  return {
    adapter: name,
    ...(guidance !== undefined ? { guidance } : {}),
    ...(steps !== undefined ? { steps } : {}),
    ...task,
  };
}

/** Draws the cases in full precision. */
async function drawReference(
  { bundle, adapter, name, cases, signal, onProgress }: AddOptions,
  against: string,
  task: Task,
): Promise<Trajectory> {
  const defaults: TaskCase = { ...defaultsOf(task), ...(await defaultSize(bundle)) };
  const chosen = cases ?? Array.from({ length: defaultCases }, (_, seed) => ({ seed }));
  const reference = await openReference(against, name, adapter);
  try {
    return await recordTrajectory(
      reference,
      name,
      chosen.map((own) => ({ ...defaults, ...own })),
      { stage: "drawing in full precision", signal, onProgress },
    );
  } finally {
    await reference.dispose();
  }
}
