import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { type Evaluation, type VariantInfo, writeEvaluation } from "../records/evaluation.ts";
import { HashCache } from "../work/hash-tree.ts";
import type { StageOptions } from "../work/progress.ts";
import { Results } from "../work/results.ts";
import { measureCauses } from "./causes.ts";
import { machineFacts, storageOf, versionFacts } from "./facts.ts";
import { openNetworks } from "./networks.ts";
import { defaultLayerCalls, type EvaluateOptions } from "./options.ts";
import { drawPictures } from "./pictures.ts";
import { exposeReference, type Reference } from "./reference.ts";
import { ablationOf, compareAll, describeResults, scalesOf } from "./results.ts";
import { candidateVariant, isBundle, referenceVariant } from "./sides.ts";
import { type DrawnVariant, findSimulation, sharesOf, simulatedVariants } from "./simulated-variants.ts";
import { leaveOutTasks, openSubject, type Subject } from "./subject.ts";

/**
 * Stage: a bundle (or exposed folder) and the full-precision model -> `evaluation.json` with pictures. Both sides draw
 * the same held-out cases with the same noise; where the bundle's profile and the calibration's observations are at hand,
 * alternatives are simulated and each layer's share in the error is measured. Pictures and measurements of an earlier run
 * with the same inputs are used again.
 * @throws InputError for folders that are not there or do not fit each other, and where no task is left to evaluate
 */
export async function evaluate(candidate: string, options: EvaluateOptions): Promise<Evaluation> {
  if (!existsSync(options.against)) throw new InputError({ what: "there is no such folder", file: options.against });
  const out = resolve(options.out);
  const pictures = join(out, "pictures");
  const work: Work = { cache: join(out, "cache"), hashes: await HashCache.open(join(out, "cache", "hashes.json")) };
  const notes: string[] = [];
  const networks = await openNetworks(options.networks ?? {});
  try {
    const subject = await openSubject(candidate, options, notes);
    const reference = await exposeReference(options.against, {
      ...{ wanted: subject.adapters, adapters: options.adapters ?? {}, config: options.config },
      ...{ ...work, signal: options.signal, onProgress: options.onProgress },
    });
    leaveOutTasks(subject, reference.missing, notes);
    const { variants, causes } = await findVariants(subject, reference, options, work, notes);
    await work.hashes.save();

    await mkdir(pictures, { recursive: true });
    const files = await drawAll(pictures, variants, subject, options);
    const { tasks, cases, size } = subject;
    const compared = await compareAll(pictures, files, cases, networks, reference.folder, options);
    const evaluation: Evaluation = {
      format: "quad-evaluation",
      version: 1,
      created: new Date().toISOString(),
      ...(await describeSides(subject, reference, options.against)),
      variants: variants.map(({ info }) => info).filter(({ name }) => !name.startsWith("share ")),
      tasks: await describeResults(pictures, tasks, cases, compared),
      msssimScales: scalesOf(size),
      ...causes,
      ablation: ablationOf(variants, compared),
      notes,
      machine: machineFacts(),
      versions: versionFacts(),
    };
    await writeEvaluation(join(out, "evaluation.json"), evaluation);
    await new Results(pictures).keepOnly(shownIn(evaluation, files));
    return evaluation;
  } finally {
    await networks.dispose();
  }
}

/** Where results are kept for a second run. */
interface Work {
  cache: string;
  hashes: HashCache;
}

/** Picture files by variant and task. */
type PictureFiles = Map<string, Map<string, string[]>>;

/** All that is drawn, in the order of the contact sheet, and what simulation found out about the error's causes. */
async function findVariants(
  { folder: candidate, tasks, cases }: Subject,
  reference: Reference,
  options: EvaluateOptions,
  work: Work,
  notes: string[],
): Promise<{ variants: DrawnVariant[]; causes: Pick<Evaluation, "noise" | "ranges"> }> {
  const variants: DrawnVariant[] = [
    await referenceVariant(reference.folder, tasks, work.hashes),
    await candidateVariant(candidate, tasks, work.hashes),
  ];
  const simulation = await findSimulation(candidate, reference, tasks, { ...options, ...work }, notes);
  if (!simulation) return { variants, causes: { noise: null, ranges: null } };
  const causes = await measureCauses(simulation, reference.folder, cases, {
    cache: work.cache,
    calls: options.layerCalls ?? defaultLayerCalls,
    bundle: isBundle(candidate) ? candidate : undefined,
    signal: options.signal,
    onProgress: options.onProgress,
  });
  const shares = sharesOf(simulation, causes.noise, options.shares, notes);
  variants.push(...simulatedVariants(simulation, shares, options.simulate || undefined));
  return { variants: variants.toSorted((a, b) => placeOf(a.info) - placeOf(b.info)), causes };
}

const order = ["reference", "untrained", "candidate"];

/** Full precision, the profile without training, what is evaluated; the rest after them. */
function placeOf({ name }: VariantInfo): number {
  const place = order.indexOf(name);
  return place < 0 ? order.length : place;
}

/** Draws every variant's pictures, except those that an earlier run left. */
async function drawAll(
  folder: string,
  variants: readonly DrawnVariant[],
  { cases }: Subject,
  { signal, onProgress }: StageOptions,
): Promise<PictureFiles> {
  const files: PictureFiles = new Map();
  for (const { info, drawer } of variants) {
    files.set(info.name, await drawPictures(folder, info, drawer, cases, { signal, onProgress }));
  }
  return files;
}

/** What is compared, and what it takes to store. */
async function describeSides(
  { folder, adapters }: Subject,
  reference: Reference,
  against: string,
): Promise<Pick<Evaluation, "reference" | "candidate">> {
  const originals = reference.adapters;
  return {
    reference: { path: against, storage: await storageOf(against, Object.keys(originals), originals) },
    candidate: {
      path: folder,
      kind: isBundle(folder) ? "bundle" : "folder",
      storage: await storageOf(folder, adapters),
    },
  };
}

/** Files of all pictures that an evaluation shows. */
function shownIn({ tasks }: Evaluation, files: PictureFiles): Set<string> {
  return new Set([
    ...[...files.values()].flatMap((byTask) => [...byTask.values()].flat()),
    ...tasks.flatMap((task) => task.cases.map(({ input }) => basename(input ?? ""))),
  ]);
}
