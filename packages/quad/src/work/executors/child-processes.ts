import { availableParallelism, freemem } from "node:os";
import type { Step } from "../plan.ts";
import { ProcessPool } from "../processes.ts";
import type { Executor } from "./executor.ts";
import { inProcess, type StageTask } from "./in-process.ts";

/** Of the memory that is free. */
const usableShare = 0.8;

/**
 * Runs steps that say what they need side by side in child processes, as memory and cores allow; all others in this process.
 * @param module - exports the stages as `tasks`, see `stageTasks`
 */
export function childProcesses(module: URL): Executor {
  const here = inProcess();
  const pool = new ProcessPool(module);
  let memory = 0;
  const fits = (step: Step, underWay: readonly Step[]) => {
    const all = [...underWay, step];
    if (all.some(({ needs }) => needs === undefined)) return false;
    const sum = (of: "memory" | "threads") => all.reduce((total, { needs }) => total + needs![of], 0);
    return sum("threads") <= availableParallelism() && sum("memory") <= memory;
  };
  return {
    name: "child-processes",
    canStart(step, underWay) {
      // Read when nothing runs: later it would count what runs a second time.
      if (underWay.length === 0) memory = usableShare * freemem();
      return underWay.length === 0 || fits(step, underWay);
    },
    async execute(job, context) {
      const { step, input, folder } = job;
      if (step.needs === undefined) return here.execute(job, context);
      const task: StageTask = { input, folder, checkpoints: context.checkpoints };
      await pool.run(step.stage.name, task, context);
    },
    async dispose() {
      await here.dispose();
      pool.dispose();
    },
  };
}
