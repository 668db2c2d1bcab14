import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import type { Pipeline, Task } from "@quad-lora/runtime";
import { openFolder } from "../model/open-folder.ts";
import { type Evaluation, type VariantInfo, writeEvaluation } from "../records/evaluation.ts";
import type { BuildConfig } from "../settings/config.ts";
import { HashCache } from "../work/hash-tree.ts";
import { adaptersOf, heldOutCases, type PreparedCase, prepareCase, sayingAdapters } from "./cases.ts";
import { measureCauses } from "./causes.ts";
import { machineFacts, storageOf, versionFacts } from "./facts.ts";
import { folderDrawer, folderIdentity } from "./folder-drawer.ts";
import { type NetworkPaths, openNetworks } from "./networks.ts";
import { drawPictures, removeOthers } from "./pictures.ts";
import { openReference } from "./reference.ts";
import { ablationOf, compareAll, describeResults, scalesOf } from "./results.ts";
import {
  findSimulation,
  type SimulatedVariant,
  sharesOf,
  simulatedVariants,
  type Variant,
} from "./simulated-variants.ts";

/** What {@link evaluate} compares with, draws and measures. */
export interface EvaluateOptions {
  /** Full-precision model folder, or an exposed folder. */
  against: string;
  /** Cases per task, and where adapters and observations are found. */
  config: BuildConfig;
  /** Folder for `evaluation.json`, the pictures, and what a second run can use again. */
  out: string;
  /** Pictures per task; default: one per evaluation case. */
  pictures?: number | undefined;
  /** Tasks to evaluate; default: all that have cases. */
  tasks?: readonly string[] | undefined;
  /** Original LoRA files by adapter name, where they are not found by themselves. */
  adapters?: Readonly<Record<string, string>>;
  /** Default: the candidate's own `profile.json`. */
  profile?: string | undefined;
  /** Default: the latest in the configuration's work folder. */
  observations?: string | undefined;
  /**
   * Simulated variants to draw too: the profile without training, a profile per task, everything at 8 bits; default: all.
   * With false, nothing is simulated, and causes are not measured.
   */
  simulate?: false | readonly SimulatedVariant[] | undefined;
  /** Shares of narrow layers to draw for the ablation table, 0 to 1. */
  shares?: readonly number[] | undefined;
  /** Denoiser calls per task that layers are measured on; 0 leaves this out. */
  layerCalls?: number | undefined;
  networks?: NetworkPaths;
  signal?: AbortSignal;
  onProgress?: (stage: string, done: number, total: number) => void;
}

const defaultLayerCalls = 3;

/**
 * Stage: a bundle (or exposed folder) and the full-precision model -> `evaluation.json` with pictures. Both sides draw
 * the same held-out cases with the same noise; where the bundle's profile and the calibration's observations are at hand,
 * alternatives are simulated and each layer's share in the error is measured. Pictures and measurements of an earlier run
 * with the same inputs are used again.
 */
export async function evaluate(candidate: string, options: EvaluateOptions): Promise<Evaluation> {
  const { config, signal, onProgress } = options;
  if (!existsSync(options.against)) throw new InputError({ what: "there is no such folder", file: options.against });
  const out = resolve(options.out);
  const cache = join(out, "cache");
  const folder = join(out, "pictures");
  const hashes = await HashCache.open(join(cache, "hashes.json"));
  const notes: string[] = [];
  const networks = await openNetworks(options.networks ?? {});
  try {
    const { tasks, size, adapters } = await describeTasks(candidate, options, notes);
    const cases = await prepareCases(tasks, size, options, notes);
    const reference = await openReference(options.against, {
      wanted: adapters,
      adapters: options.adapters ?? {},
      config,
      cache,
      hashes,
      signal,
      onProgress,
    });
    for (const [name, task] of [...tasks]) {
      const lost = Object.keys(adaptersOf(name, task)).find((adapter) => reference.missing.includes(adapter));
      if (lost === undefined) continue;
      const remedy = `the original of adapter "${lost}" was not found; give --adapter ${lost}=FILE`;
      notes.push(`Task ${name} is left out: ${remedy}.`);
      tasks.delete(name);
      cases.delete(name);
    }
    if (tasks.size === 0) {
      throw new InputError({ what: "no task is left to evaluate", file: candidate, got: notes.join(" ") });
    }
    await mkdir(folder, { recursive: true });

    const simulation = await findSimulation(candidate, reference, tasks, { ...options, cache, hashes }, notes);
    const isBundle = existsSync(join(candidate, "manifest.json"));
    const causes = simulation
      ? await measureCauses(simulation, reference.folder, cases, {
          cache,
          calls: options.layerCalls ?? defaultLayerCalls,
          bundle: isBundle ? candidate : undefined,
          signal,
          onProgress,
        })
      : { noise: null, ranges: null };
    const unsorted: Variant[] = [
      {
        info: {
          name: "reference",
          label: "full precision",
          description: "The original model with the original adapter.",
          kind: "reference",
        },
        drawer: folderDrawer(reference.folder, tasks, await folderIdentity(reference.folder, hashes)),
      },
      {
        info: {
          name: "candidate",
          label: isBundle ? "bundle" : "evaluated folder",
          description: isBundle ? "The bundle as it would ship." : "The folder under evaluation.",
          kind: "candidate",
        },
        drawer: folderDrawer(candidate, tasks, await folderIdentity(candidate, hashes)),
      },
      ...(simulation
        ? simulatedVariants(
            simulation,
            sharesOf(simulation, causes.noise, options.shares, notes),
            options.simulate || undefined,
          )
        : []),
    ];
    const variants = unsorted.toSorted((a, b) => placeOf(a.info) - placeOf(b.info));
    await hashes.save();

    const files = new Map<string, Map<string, string[]>>();
    for (const { info, drawer } of variants) {
      const drawn = await drawPictures(folder, info.name, drawer, cases, {
        signal,
        onPicture: (done, total) => onProgress?.(`drawing: ${info.label}`, done, total),
      });
      files.set(info.name, drawn);
    }

    const compared = await compareAll(folder, files, cases, networks, reference.folder, options);
    const evaluation: Evaluation = {
      format: "quad-evaluation",
      version: 1,
      created: new Date().toISOString(),
      reference: {
        path: options.against,
        storage: await storageOf(options.against, Object.keys(reference.adapters), reference.adapters),
      },
      candidate: {
        path: candidate,
        kind: isBundle ? "bundle" : "folder",
        storage: await storageOf(candidate, adapters),
      },
      variants: variants.map(({ info }) => info).filter(({ name }) => !name.startsWith("share ")),
      tasks: await describeResults(folder, tasks, cases, compared),
      msssimScales: scalesOf(size),
      ...causes,
      ablation: ablationOf(variants, compared),
      notes,
      machine: machineFacts(),
      versions: versionFacts(),
    };
    await writeEvaluation(join(out, "evaluation.json"), evaluation);
    await removeOthers(
      folder,
      new Set([
        ...[...files.values()].flatMap((byTask) => [...byTask.values()].flat()),
        ...evaluation.tasks.flatMap((task) => task.cases.map(({ input }) => basename(input ?? ""))),
      ]),
    );
    return evaluation;
  } finally {
    await networks.dispose();
  }
}

const order = ["reference", "untrained", "candidate"];

/** Full precision, the profile without training, what is evaluated; the rest after them. */
function placeOf({ name }: VariantInfo): number {
  const place = order.indexOf(name);
  return place < 0 ? order.length : place;
}

/** The candidate's tasks that are to be evaluated, with their definitions. */
async function describeTasks(
  candidate: string,
  { tasks, config }: EvaluateOptions,
  notes: string[],
): Promise<{
  tasks: Map<string, Readonly<Task>>;
  adapters: string[];
  size: Pipeline["defaultSize"];
}> {
  const pipeline = await openFolder(candidate);
  const size = pipeline.defaultSize;
  const { adapters } = pipeline;
  const definitions = new Map(
    pipeline.tasks.map((name) => [name, sayingAdapters(name, pipeline.task(name), adapters)]),
  );
  await pipeline.dispose();
  const chosen = new Map<string, Readonly<Task>>();
  for (const name of tasks ?? definitions.keys()) {
    const definition = definitions.get(name);
    if (!definition) {
      const expected = `one of ${[...definitions.keys()].join(", ")}`;
      throw new InputError({ what: `no task ${name}`, file: candidate, expected });
    }
    if (config.tasks[name]) chosen.set(name, definition);
    else notes.push(`Task ${name} is left out: the configuration has no cases for it (tasks.${name}.evaluation).`);
  }
  return { tasks: chosen, adapters, size };
}

/** The held-out cases of every task, their pictures read. */
async function prepareCases(
  tasks: ReadonlyMap<string, Readonly<Task>>,
  size: Pipeline["defaultSize"],
  { config, pictures }: EvaluateOptions,
  notes: string[],
): Promise<Map<string, PreparedCase[]>> {
  const cases = new Map<string, PreparedCase[]>();
  for (const [name, task] of tasks) {
    const settings = config.tasks[name];
    const { cases: chosen, note } = heldOutCases(settings, pictures);
    if (note) notes.push(`Task ${name} ${note}.`);
    cases.set(name, await Promise.all(chosen.map((one) => prepareCase(name, settings, one, task, size))));
  }
  return cases;
}
