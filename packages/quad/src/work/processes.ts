import { type ChildProcess, fork } from "node:child_process";
import { InputError, type InputProblem } from "@quad-lora/base";
import type { Progress, StageOptions } from "./progress.ts";

/** What a process is told. Everything else that ends it are signals, and the loss of its parent. */
export interface ToProcess {
  module: string;
  task: string;
  input: unknown;
}

/** What a process says; the last message of a task is its result or its error. */
export type FromProcess =
  | { kind: "progress"; progress: Parameters<Progress> }
  | { kind: "warning"; text: string }
  | { kind: "result"; result: unknown }
  | { kind: "error"; message: string; stack?: string; problem?: InputProblem };

/** How a caller follows and stops a task. */
export interface TaskOptions extends StageOptions {
  onWarning?: (text: string) => void;
}

/**
 * Child processes that run tasks of a module, one each at a time: ONNX Runtime's runs block the process that they are in. An
 * abort is SIGTERM: the task ends as it does on an abort in this process, and writes its checkpoint.
 */
export class ProcessPool {
  readonly #module: URL;
  readonly #isKept: boolean;
  readonly #idle = new Set<ChildProcess>();
  readonly #busy = new Set<ChildProcess>();

  /**
   * @param module - exports `tasks`: functions of an input and a `StageContext` without checkpoints, by name
   * @param isKept - whether processes are used again; else each ends with its task, and its memory is free
   */
  constructor(module: URL, isKept = false) {
    this.#module = module;
    this.#isKept = isKept;
  }

  /** Runs a task in a process that is idle, or a new one. What it takes and gives is copied as `structuredClone` does. */
  async run<Result>(task: string, input: unknown, options: TaskOptions = {}): Promise<Result> {
    options.signal?.throwIfAborted();
    const child = this.#take();
    try {
      return await request(child, { module: this.#module.href, task, input }, options);
    } finally {
      this.#busy.delete(child);
      if (this.#isKept && child.connected && !options.signal?.aborted) this.#idle.add(child);
      else if (child.connected) child.disconnect();
    }
  }

  /** Ends all processes. */
  dispose(): void {
    for (const child of [...this.#idle, ...this.#busy]) child.kill();
    this.#idle.clear();
  }

  #take(): ChildProcess {
    const [idle] = this.#idle;
    const child = idle ?? fork(new URL("./process.js", import.meta.url), { serialization: "advanced" });
    this.#idle.delete(child);
    this.#busy.add(child);
    return child;
  }
}

function request<Result>(child: ChildProcess, message: ToProcess, options: TaskOptions): Promise<Result> {
  const { signal } = options;
  return new Promise((resolve, reject) => {
    const stop = () => child.kill("SIGTERM");
    const settle = (settled: () => void) => {
      signal?.removeEventListener("abort", stop);
      child.off("message", onMessage).off("error", onError).off("exit", onExit);
      settled();
    };
    const onError = (error: Error) => settle(() => reject(error));
    const onExit = (code: number | null, killedBy: string | null) =>
      settle(() => {
        if (signal?.aborted) reject(signal.reason);
        else reject(new Error(`the process for ${message.task} ended: ${killedBy ?? `exit code ${code}`}`));
      });
    const onMessage = (reply: FromProcess) => {
      if (reply.kind === "progress") options.onProgress?.(...reply.progress);
      else if (reply.kind === "warning") options.onWarning?.(reply.text);
      else if (reply.kind === "result") settle(() => resolve(reply.result as Result));
      else settle(() => reject(signal?.aborted ? signal.reason : errorOf(reply)));
    };
    child.on("message", onMessage).on("error", onError).on("exit", onExit);
    signal?.addEventListener("abort", stop, { once: true });
    child.send(message);
  });
}

/** The error as it was thrown there, with that process's stack. */
function errorOf({ message, stack, problem }: Extract<FromProcess, { kind: "error" }>): Error {
  const error = problem ? new InputError(problem) : new Error(message);
  if (stack !== undefined) error.stack = stack;
  return error;
}
