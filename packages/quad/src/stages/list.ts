import { stageTasks } from "../work/executors/in-process.ts";
import type { AnyStage } from "../work/stage.ts";
import { observeStage, recordStage } from "./calibrate.ts";
import { compileStage } from "./compile.ts";
import { distillStage, teacherStage } from "./distill.ts";
import { exposeStage } from "./expose.ts";
import { profileStage, tuneStage } from "./profile.ts";

/** All stages that a build is planned from. */
export const stages: readonly AnyStage[] = [
  exposeStage,
  recordStage,
  observeStage,
  profileStage,
  tuneStage,
  teacherStage,
  distillStage,
  compileStage,
];

/** The same for child processes. */
export const tasks = stageTasks(stages);
