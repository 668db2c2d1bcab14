import { ProcessPool } from "../work/processes.ts";
import { Shared } from "../work/shared.ts";
import type { BenchSources, Groundwork } from "./bench.ts";
import type { Variant } from "./variants.ts";
import { type Measured, type MeasureTask, tasks } from "./worker.ts";

export type { Measured } from "./worker.ts";

export interface WorkOptions {
  /** Processes that share the work; 1: this one does it. */
  processes: number;
  signal?: AbortSignal;
  /** Called after every picture of any variant. */
  onStep?: () => void;
  /** Called with every result, in the order in which they come. */
  onResult: (variant: Variant, result: Measured) => Promise<void>;
}

/** Measures all variants. The first failure ends the others. */
export async function measureAll(
  sources: BenchSources,
  groundwork: Groundwork,
  variants: readonly Variant[],
  { processes, signal, onStep, onResult }: WorkOptions,
): Promise<void> {
  const failed = new AbortController();
  const either = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal;
  const shared = new Shared();
  const pool = new ProcessPool(new URL("./worker.js", import.meta.url), true);
  const options = { signal: either, onProgress: onStep };
  const share = await shared.for("measure");
  const measure = (task: MeasureTask) =>
    processes === 1
      ? tasks.measure(task, { ...options, share })
      : pool.run<Measured>("measure", { ...task, sources: { ...sources, threads: 1 } }, options);
  const queue = [...variants];
  const work = async () => {
    for (let variant = queue.shift(); variant; variant = queue.shift()) {
      either.throwIfAborted();
      await onResult(variant, await measure({ sources, variant, groundwork }));
    }
  };
  const workers = Array.from({ length: Math.min(processes, queue.length) }, work);
  for (const worker of workers) worker.catch((error) => failed.abort(error));
  try {
    await Promise.allSettled(workers);
    either.throwIfAborted();
  } finally {
    pool.dispose();
    await shared.dispose();
  }
}
