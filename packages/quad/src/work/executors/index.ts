import { childProcesses } from "./child-processes.ts";
import type { Executor } from "./executor.ts";
import { inProcess } from "./in-process.ts";

/** All executors by name; they take the module that exports the stages. */
export const executors = {
  "in-process": () => inProcess(),
  "child-processes": childProcesses,
} satisfies Record<string, (stages: URL) => Executor>;

export type ExecutorName = keyof typeof executors;

/** The executor that a build has by default. Sources that a test runs are not a program that a child process could run. */
export function defaultExecutor(stages: URL): Executor {
  return executors[stages.pathname.endsWith(".ts") ? "in-process" : "child-processes"](stages);
}
