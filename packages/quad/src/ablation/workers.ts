import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { InputError, type InputProblem } from "@quad-lora/base";
import { AblationBench, type BenchSources, type Groundwork } from "./bench.ts";
import type { Variant } from "./variants.ts";

export type Measured = Awaited<ReturnType<AblationBench["measure"]>> & { seconds: number };

export type ToWorker =
  | { kind: "open"; sources: BenchSources }
  | { kind: "measure"; variant: Variant; groundwork: Groundwork };

export type FromWorker =
  | { kind: "ready" }
  | { kind: "step" }
  | { kind: "result"; result: Measured }
  | { kind: "error"; message: string; problem?: InputProblem | undefined };

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
  options: WorkOptions,
): Promise<void> {
  const { signal, onStep, onResult } = options;
  const queue = [...variants];
  if (options.processes === 1) {
    const bench = await AblationBench.open(sources);
    try {
      for (const variant of queue) {
        signal?.throwIfAborted();
        const started = performance.now();
        const result = await bench.measure(variant, groundwork, { signal, onStep });
        await onResult(variant, { ...result, seconds: (performance.now() - started) / 1000 });
      }
    } finally {
      await bench.dispose();
    }
    return;
  }
  const count = Math.min(options.processes, queue.length);
  const workers = Array.from({ length: count }, () => new Worker(onStep));
  const stop = () => {
    for (const worker of workers) worker.stop();
  };
  signal?.addEventListener("abort", stop);
  try {
    await Promise.all(
      workers.map(async (worker) => {
        await worker.request({ kind: "open", sources: { ...sources, threads: 1 } });
        for (let variant = queue.shift(); variant; variant = queue.shift()) {
          const result = await worker.request({ kind: "measure", variant, groundwork });
          await onResult(variant, result!);
        }
      }),
    );
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener("abort", stop);
    stop();
  }
}

/** One child process; it answers one request at a time. */
class Worker {
  readonly #child: ChildProcess;
  #settle: { resolve: (result?: Measured) => void; reject: (error: Error) => void } | undefined;
  #ended: Error | undefined;

  constructor(onStep?: () => void) {
    this.#child = fork(fileURLToPath(new URL("./worker.js", import.meta.url)));
    this.#child.on("message", (message: FromWorker) => {
      if (message.kind === "step") onStep?.();
      else if (message.kind === "ready") this.#settle?.resolve();
      else if (message.kind === "result") this.#settle?.resolve(message.result);
      else this.#settle?.reject(message.problem ? new InputError(message.problem) : new Error(message.message));
    });
    this.#child.on("error", (error) => this.#end(error));
    this.#child.on("exit", (code, signal) => this.#end(new Error(`a measuring process ended (${signal ?? code})`)));
  }

  request(message: ToWorker): Promise<Measured | undefined> {
    return new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
      if (this.#ended) reject(this.#ended);
      else this.#child.send(message);
    });
  }

  stop(): void {
    this.#child.kill();
  }

  #end(error: Error): void {
    this.#ended ??= error;
    this.#settle?.reject(error);
  }
}
