import type { Step } from "../plan.ts";
import type { Json, StageContext } from "../stage.ts";

/** A step that can run: its input has paths in place of references. */
export interface Job {
  readonly step: Step;
  readonly input: Json;
  /** Empty folder for the result. */
  readonly folder: string;
}

/** What the caller of a job hands on to the stage; sharing is the executor's own. */
export type JobContext = Omit<StageContext, "share">;

/** Where and how many at once the steps of a plan run. It knows nothing of keys and results. */
export interface Executor {
  readonly name: string;
  /** Whether a step can start beside those that are under way. */
  canStart(step: Step, underWay: readonly Step[]): boolean;
  /** Runs a step to its end. Throws what the stage throws; an `InputError` stays one. */
  execute(job: Job, context: JobContext): Promise<void>;
  /** Frees what was kept between steps. */
  dispose(): Promise<void>;
}
