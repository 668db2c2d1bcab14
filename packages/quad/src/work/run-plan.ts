import type { Executor } from "./executors/executor.ts";
import { JointProgress } from "./joint-progress.ts";
import type { Plan, Step } from "./plan.ts";
import type { StageOptions } from "./progress.ts";
import type { Results } from "./results.ts";
import type { Stage, StageResult } from "./stage.ts";

/** Where a plan runs, and how a caller follows and stops it. */
export interface RunOptions extends StageOptions {
  results: Results;
  executor: Executor;
  /** Told of every step when it is done or found done, in an order in which each comes after those that it takes from. */
  onStage?: (label: string, result: StageResult) => void;
  onWarning?: (text: string) => void;
}

/**
 * Runs the steps of a plan whose results are not there. An interrupted run continues with the steps that are missing. The
 * first failure ends what is under way, and is thrown.
 */
export async function runPlan(plan: Plan, options: RunOptions): Promise<Record<string, StageResult>> {
  const failed = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, failed.signal]) : failed.signal;
  const run = new PlanRun(plan, { ...options, signal });
  const underWay = new Map<Step, Promise<void>>();
  let failure: { error: unknown } | undefined;
  const fail = (error: unknown): undefined => {
    failure ??= { error };
    failed.abort(error);
  };
  try {
    while (!failure && !signal.aborted) {
      const step = await run.next([...underWay.keys()]).catch(fail);
      if (step) {
        const work = run.start(step).catch(fail);
        underWay.set(
          step,
          work.finally(() => underWay.delete(step)),
        );
      } else if (underWay.size > 0) await Promise.race(underWay.values());
      else break;
    }
    await Promise.all(underWay.values());
    options.signal?.throwIfAborted();
    if (failure) throw failure.error;
    return Object.fromEntries(run.done);
  } finally {
    await options.executor.dispose();
  }
}

class PlanRun {
  readonly done = new Map<string, StageResult>();
  readonly #plan: Plan;
  readonly #options: RunOptions;
  readonly #progress: JointProgress;
  readonly #missing = new Set<string>();
  #extended = 0;
  #reserved = 0;

  constructor(plan: Plan, options: RunOptions) {
    this.#plan = plan;
    this.#options = options;
    this.#progress = new JointProgress(options.onProgress);
  }

  /** The next step to run; undefined where there is none, or none that can start now. Passes over those that are done. */
  async next(underWay: readonly Step[]): Promise<Step | undefined> {
    const running = new Set(underWay.map(({ label }) => label));
    await this.#extend();
    let startable: Step | undefined;
    for (const step of this.#plan.steps) {
      const { label, after } = step;
      if (this.done.has(label) || running.has(label) || !after.every((needed) => this.done.has(needed))) continue;
      if (!this.#missing.has(label)) {
        const found = await this.#find(step);
        if (found) {
          this.#finish(label, found, true);
          return this.next(underWay);
        }
        this.#missing.add(label);
        this.#progress.expect(step);
      }
      // All that are missing are looked at first: progress counts them together.
      if (!startable && this.#options.executor.canStart(step, underWay)) startable = step;
    }
    return startable;
  }

  /** Runs a step into its result. */
  async start(step: Step): Promise<void> {
    const { label } = step;
    const { results, executor, signal, onWarning } = this.#options;
    const key = this.#plan.keyOf(label);
    const checkpoints = results.checkpoints(label, key);
    const folder = await results.make(label, key, (temporary) =>
      executor.execute(
        { step, input: this.#inputOf(label), folder: temporary },
        { checkpoints, signal, onWarning, onProgress: this.#progress.of(step) },
      ),
    );
    await results.removeCheckpoints(checkpoints);
    this.#finish(label, folder, false);
  }

  #finish(label: string, folder: string, reused: boolean): void {
    const result = { folder, key: this.#plan.keyOf(label), reused };
    this.done.set(label, result);
    this.#options.onStage?.(label, result);
  }

  async #find({ label, stage }: Step): Promise<string | null> {
    const { results } = this.#options;
    const found = results.find(label, this.#plan.keyOf(label));
    if (!found) return null;
    const { isCurrent = async () => true } = stage as unknown as Stage<unknown>;
    if (await isCurrent(this.#inputOf(label), found)) return found;
    await results.remove(found);
    return null;
  }

  #inputOf(label: string) {
    return this.#plan.inputOf(label, (needed) => this.done.get(needed)!.folder);
  }

  async #extend(): Promise<void> {
    const { results } = this.#options;
    while (this.#extended < this.#plan.extensions.length) {
      const { after, extend } = this.#plan.extensions[this.#extended];
      const result = this.done.get(after);
      if (!result) break;
      await extend(result.folder);
      this.#extended++;
    }
    if (this.#reserved === this.#plan.steps.length) return;
    this.#reserved = this.#plan.steps.length;
    await results.reserve(this.#plan.steps.map(({ label }) => results.path(label, this.#plan.keyOf(label))));
  }
}
