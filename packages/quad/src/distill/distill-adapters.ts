import { fork } from "node:child_process";
import { availableParallelism, freemem } from "node:os";
import { InputError, type InputProblem } from "@quad-lora/base";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { decibels as toDecibels } from "../metrics/index.ts";
import { graphBytes } from "../model/graph-files.ts";
import type { TrainingProgress } from "../train/training-loop.ts";
import { type DistillAdapterOptions, type DistillAdapterResult, distillAdapter } from "./distill-adapter.ts";

/** What a worker process says. */
export type WorkerReply =
  | { kind: "progress"; progress: TrainingProgress }
  | { kind: "result"; result: DistillAdapterResult }
  | { kind: "error"; message: string; problem?: InputProblem };

/** Progress of several adapters as one. */
export interface DistillProgress {
  done: number;
  total: number;
  /** Latest signal to noise that the losses stand for, dB, by adapter. */
  decibels: Readonly<Record<string, number>>;
  /** The same for the features behind blocks, where they take part. */
  featureDecibels: Readonly<Record<string, number>>;
}

/**
 * Runs {@link distillAdapter} for several adapters, side by side in processes of their own as cores and memory allow.
 * Adapters do not depend on each other, so results are the same however many run at once.
 */
export async function distillAdapters(
  jobs: readonly Omit<DistillAdapterOptions, "signal" | "onProgress">[],
  options: { signal?: AbortSignal; onProgress?: (progress: DistillProgress) => void; atOnce?: number } = {},
): Promise<DistillAdapterResult[]> {
  const atOnce = Math.min(jobs.length, options.atOnce ?? (await capacity(jobs)));
  const steps = jobs.map(() => 0);
  const decibels: Record<string, number> = {};
  const featureDecibels: Record<string, number> = {};
  const total = jobs.reduce((sum, { settings }) => sum + settings.steps, 0);
  const results: DistillAdapterResult[] = [];
  // The first failure ends the others too.
  const failed = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, failed.signal]) : failed.signal;
  let next = 0;
  const work = async () => {
    while (next < jobs.length) {
      const index = next++;
      const job = jobs[index];
      const onProgress = ({ step, loss, terms }: TrainingProgress) => {
        steps[index] = step;
        const { features } = terms;
        decibels[job.adapter] = toDecibels(loss - job.settings.features * (features ?? 0));
        if (features !== undefined) featureDecibels[job.adapter] = toDecibels(features);
        options.onProgress?.({ done: steps.reduce((a, b) => a + b, 0), total, decibels, featureDecibels });
      };
      signal.throwIfAborted();
      try {
        results[index] =
          atOnce > 1 ? await inProcess(job, signal, onProgress) : await distillAdapter({ ...job, signal, onProgress });
      } catch (error) {
        failed.abort(error);
        throw error;
      }
    }
  };
  const outcomes = await Promise.allSettled(Array.from({ length: atOnce }, work));
  options.signal?.throwIfAborted();
  if (failed.signal.aborted) throw failed.signal.reason;
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  return results;
}

/** How many adapters can train at once. Activations of a training step take several times the model's size. */
async function capacity(jobs: readonly Pick<DistillAdapterOptions, "exposed" | "settings">[]): Promise<number> {
  // Sources that a test runs are no program that a child process could run.
  if (jobs.length < 2 || import.meta.url.endsWith(".ts")) return 1;
  const [{ exposed, settings }] = jobs;
  const size = await graphBytes(exposed, (await ExposedModel.open(exposed)).component);
  // The teacher of features is the model once more, with activations.
  const times = settings.features > 0 ? 8 : 6;
  const memory = Math.floor((0.8 * freemem()) / (1e9 + times * size));
  return Math.max(1, Math.min(Math.floor(availableParallelism() / settings.threads), memory));
}

function inProcess(
  job: Omit<DistillAdapterOptions, "signal" | "onProgress">,
  signal: AbortSignal,
  onProgress: (progress: TrainingProgress) => void,
): Promise<DistillAdapterResult> {
  return new Promise((resolve, reject) => {
    const child = fork(new URL("./worker.js", import.meta.url));
    const stop = () => child.kill("SIGTERM");
    signal.addEventListener("abort", stop, { once: true });
    let reply: WorkerReply | undefined;
    child.on("message", (message: WorkerReply) => {
      if (message.kind === "progress") onProgress(message.progress);
      else reply = message;
    });
    child.once("error", reject);
    child.once("exit", (code, killedBy) => {
      signal.removeEventListener("abort", stop);
      if (reply?.kind === "result") resolve(reply.result);
      else if (signal.aborted) reject(signal.reason);
      else if (reply?.kind === "error")
        reject(reply.problem ? new InputError(reply.problem) : new Error(reply.message));
      else reject(new Error(`the process that distils ${job.adapter} ended: ${killedBy ?? `exit code ${code}`}`));
    });
    child.send(job);
  });
}
