import { Shared } from "../shared.ts";
import type { AnyStage, Stage } from "../stage.ts";
import type { Executor } from "./executor.ts";

/** Runs steps in this process, one after another. */
export function inProcess(): Executor {
  const shared = new Shared();
  return {
    name: "in-process",
    canStart: (_, underWay) => underWay.length === 0,
    async execute({ step, input, folder }, context) {
      const stage = step.stage as unknown as Stage<unknown>;
      await stage.run(input, folder, { ...context, share: await shared.for(stage.name) });
    },
    dispose: () => shared.dispose(),
  };
}

/** Stages as a process of a pool takes them, see `ProcessPool`: by name, with the folder beside the input. */
export function stageTasks(stages: readonly AnyStage[]) {
  return Object.fromEntries(
    stages.map((stage) => [
      stage.name,
      ({ input, folder, checkpoints }: StageTask, context: Omit<Parameters<AnyStage["run"]>[2], "checkpoints">) =>
        (stage as unknown as Stage<unknown>).run(input, folder, { ...context, checkpoints }),
    ]),
  );
}

/** What {@link stageTasks} takes. */
export interface StageTask {
  input: unknown;
  folder: string;
  checkpoints: string;
}
