import type { Plan } from "./plan.ts";
import type { Results } from "./results.ts";
import type { Stage } from "./stage.ts";

/** What of a plan is done, and what a run would do. */
export interface PlanState {
  steps: {
    label: string;
    done: boolean;
    /** How much of it is done, where it has parts. */
    detail?: string;
  }[];
  /** What can only be planned when a step is done. */
  open: { after: string; what: string }[];
}

/** Looks at a plan's results. Runs nothing; plans further where the result that this takes is there. */
export async function planState(plan: Plan, results: Results): Promise<PlanState> {
  const folderOf = (label: string) => results.path(label, plan.keyOf(label));
  const isDone = async (label: string) => {
    const step = plan.steps.find((one) => one.label === label)!;
    if (!results.find(label, plan.keyOf(label))) return false;
    const { isCurrent = async () => true } = step.stage as unknown as Stage<unknown>;
    return isCurrent(plan.inputOf(label, folderOf), folderOf(label));
  };
  const open: PlanState["open"] = [];
  for (const { after, what, extend } of plan.extensions) {
    if (await isDone(after)) await extend(folderOf(after));
    else open.push({ after, what });
  }
  const steps: PlanState["steps"] = [];
  for (const { label } of plan.steps) steps.push({ label, done: await isDone(label) });
  return { steps, open };
}
