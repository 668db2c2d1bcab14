import { join, resolve } from "node:path";
import { HashCache } from "../work/hash-tree.ts";
import type { PlanState } from "../work/plan-state.ts";
import { countNoise } from "./causes.ts";
import { defaultLayerCalls, type EvaluateOptions } from "./options.ts";
import { countPictures } from "./pictures.ts";
import { findExposed, findReference } from "./reference.ts";
import { candidateVariant, isBundle, referenceVariant } from "./sides.ts";
import { type DrawnVariant, findSimulation, simulatedVariants } from "./simulated-variants.ts";
import { leaveOutTasks, openSubject } from "./subject.ts";

/**
 * What `evaluate` would do: what is to be exposed, measured and drawn, and how much of it is done. Runs no graph and writes
 * nothing but hashes of files that it read.
 * @throws InputError as `evaluate`
 */
export async function planOfEvaluation(candidate: string, options: EvaluateOptions): Promise<PlanState> {
  const out = resolve(options.out);
  const cache = join(out, "cache");
  const hashes = await HashCache.open(join(cache, "hashes.json"));
  const notes: string[] = [];
  const state: PlanState = { steps: [], open: [] };
  const add = (label: string, { done, total }: { done: number; total: number }) => {
    if (total > 0) state.steps.push({ label, done: done === total, detail: `${done} of ${total}` });
  };
  const subject = await openSubject(candidate, options, notes);
  const { tasks, cases } = subject;
  const wanted = { wanted: subject.adapters, adapters: options.adapters ?? {}, config: options.config };
  const { folder: given, adapters, missing } = findReference(options.against, wanted);
  leaveOutTasks(subject, missing, notes);
  const folder = given ?? (await findExposed(options.against, adapters, { cache, hashes }));
  if (!given) state.steps.push({ label: "expose", done: folder !== null });
  const draw = ({ info, drawer }: DrawnVariant) =>
    add(`draw: ${info.label}`, countPictures(join(out, "pictures"), info.name, drawer, cases));

  draw(await candidateVariant(candidate, tasks, hashes));
  if (!folder) {
    state.open.push({ after: "expose", what: "draw: full precision, simulations; measure layers" });
    return state;
  }
  draw(await referenceVariant(folder, tasks, hashes));
  const simulation = await findSimulation(
    candidate,
    { folder, adapters },
    tasks,
    { ...options, cache, hashes, mayExpose: false },
    notes,
  );
  if (simulation) {
    const calls = options.layerCalls ?? defaultLayerCalls;
    add(
      "measure layers",
      await countNoise(simulation, cases, { cache, calls, bundle: isBundle(candidate) ? candidate : undefined }),
    );
    for (const variant of simulatedVariants(simulation, [], options.simulate || undefined)) draw(variant);
    if (options.shares?.length) state.open.push({ after: "measure layers", what: "draw: shares of 8-bit layers" });
  }
  await hashes.save();
  return state;
}
