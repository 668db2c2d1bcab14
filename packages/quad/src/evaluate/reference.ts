import { existsSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import type { BuildConfig } from "../settings/config.ts";
import { planExpose } from "../stages/plan.ts";
import { inProcess } from "../work/executors/in-process.ts";
import type { HashCache } from "../work/hash-tree.ts";
import { Plan } from "../work/plan.ts";
import type { StageOptions } from "../work/progress.ts";
import { Results } from "../work/results.ts";
import { runPlan } from "../work/run-plan.ts";

export interface ReferenceOptions extends StageOptions {
  /** Adapters that the candidate has. All that can be found take part, whatever is drawn: the graph is then always the same. */
  wanted: readonly string[];
  /** LoRA files by name, before all other places. */
  adapters: Readonly<Record<string, string>>;
  config?: BuildConfig;
  /** Where exposed folders are kept. */
  cache: string;
  hashes: HashCache;
}

/** The full-precision side of a comparison. */
export interface Reference {
  /** Exposed folder. */
  folder: string;
  /** Original LoRA files by adapter; none where the folder was exposed before. */
  adapters: Record<string, string>;
  /** Adapters whose original was not found. */
  missing: string[];
}

/**
 * The full-precision side as an exposed folder: `against` itself if it has slots, else a base model, exposed with the
 * original LoRA files. These come from `adapters`, the configuration, or `against`'s own `adapters/`.
 * @throws InputError when `against` is neither, or is itself quantized
 */
export async function exposeReference(against: string, options: ReferenceOptions): Promise<Reference> {
  const { folder, ...sources } = findReference(against, options);
  return { ...sources, folder: folder ?? (await exposeCached(against, sources.adapters, options)) };
}

/** What {@link exposeReference} goes by; the folder is null where it has to be exposed, or was in an earlier run. */
export function findReference(
  against: string,
  options: Pick<ReferenceOptions, "wanted" | "adapters" | "config">,
): Omit<Reference, "folder"> & { folder: string | null } {
  if (existsSync(join(against, "manifest.json"))) {
    throw new InputError({
      what: "is a bundle: its graph is quantized",
      file: against,
      expected: "the full-precision model folder, or an exposed folder",
      fix: "Give the folder that the bundle was built from, such as the configuration's model.",
    });
  }
  if (existsSync(join(against, "slots.json"))) {
    const missing = options.wanted.filter((name) => !existsSync(join(against, "adapters", `${name}.safetensors`)));
    return { folder: against, adapters: {}, missing };
  }
  const found: Record<string, string> = {};
  const missing: string[] = [];
  // The configuration's order first: the exposed graph is then the one that the profile was made for.
  const names = [...Object.keys(options.config?.adapters ?? {}), ...options.wanted, ...Object.keys(options.adapters)];
  for (const name of new Set(names)) {
    const path = originalOf(name, against, options);
    if (path) found[name] = path;
    else missing.push(name);
  }
  return { folder: null, adapters: found, missing };
}

/** Where the exposed folder of a model is in the cache; null where it is not. */
export async function findExposed(
  model: string,
  adapters: Readonly<Record<string, string>>,
  { cache, hashes }: Pick<ReferenceOptions, "cache" | "hashes">,
): Promise<string | null> {
  const plan = new Plan();
  await planExpose(plan, { model, adapters }, hashes);
  const found = new Results(cache).find("expose", plan.keyOf("expose"));
  return found && join(found, "exposed");
}

/** The stage expose over a model folder, or its result where that is in the cache. */
export async function exposeCached(
  model: string,
  adapters: Readonly<Record<string, string>>,
  { cache, hashes, signal, onProgress }: Pick<ReferenceOptions, "cache" | "hashes" | "signal" | "onProgress">,
): Promise<string> {
  const plan = new Plan();
  await planExpose(plan, { model, adapters }, hashes);
  const results = new Results(cache);
  try {
    const stages = await runPlan(plan, { results, executor: inProcess(), signal, onProgress });
    return join(stages.expose.folder, "exposed");
  } finally {
    await results.release();
  }
}

function originalOf(
  name: string,
  model: string,
  { adapters, config }: Pick<ReferenceOptions, "adapters" | "config">,
): string | undefined {
  const given = adapters[name] ?? config?.adapters[name];
  if (given !== undefined) return given;
  return [join(model, "adapters", name), join(model, "adapters", `${name}.safetensors`)].find(existsSync);
}
