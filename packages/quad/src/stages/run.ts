import { join } from "node:path";
import type { Executor } from "../work/executors/executor.ts";
import { type ExecutorName, executorOf } from "../work/executors/index.ts";
import { HashCache } from "../work/hash-tree.ts";
import type { Plan } from "../work/plan.ts";
import type { StageOptions } from "../work/progress.ts";
import { Results } from "../work/results.ts";
import { runPlan } from "../work/run-plan.ts";
import type { StageResult } from "../work/stage.ts";

/** How a caller follows and stops a build, and where its steps run. */
export interface BuildOptions extends StageOptions {
  /** Told of every stage when it is done or found done. */
  onStage?: (name: string, result: StageResult) => void;
  onWarning?: (text: string) => void;
  /** Default: this process, and child processes for what can run side by side. */
  executor?: ExecutorName | Executor;
}

const source = import.meta.url.endsWith(".ts") ? "./list.ts" : "./list.js";

/**
 * Plans and runs stages in a work folder, where results of unchanged ones are used again.
 * @param use - what to do with the results: until it is done no other process removes them
 */
export async function runInWorkFolder<Outcome>(
  work: string,
  { signal, onProgress, onStage, onWarning, executor }: BuildOptions,
  plan: (hashes: HashCache) => Promise<Plan>,
  use: (stages: Record<string, StageResult>, results: Results) => Promise<Outcome>,
): Promise<Outcome> {
  const results = new Results(work);
  const hashes = await HashCache.open(join(work, "hashes.json"));
  const planned = await plan(hashes);
  await hashes.save();
  try {
    const stages = await runPlan(planned, {
      results,
      executor: typeof executor === "object" ? executor : executorOf(new URL(source, import.meta.url), executor),
      ...{ signal, onProgress, onStage, onWarning },
    });
    await hashes.save();
    return await use(stages, results);
  } finally {
    await results.release();
  }
}
