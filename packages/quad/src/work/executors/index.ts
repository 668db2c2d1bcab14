import { childProcesses } from "./child-processes.ts";
import type { Executor } from "./executor.ts";
import { inProcess } from "./in-process.ts";

/** All executors by name; they take the module that exports the stages. */
export const executors = {
  "in-process": () => inProcess(),
  "child-processes": childProcesses,
} satisfies Record<string, (stages: URL) => Executor>;

/** Name of an executor: where the steps of a build run. */
export type ExecutorName = keyof typeof executors;

/** An executor by name; default: child processes for what can run side by side. Sources that a test runs are not a program that a child process could run. */
export function executorOf(
  stages: URL,
  name: ExecutorName = stages.pathname.endsWith(".ts") ? "in-process" : "child-processes",
): Executor {
  return executors[name](stages);
}
