import type { Step } from "./plan.ts";
import type { Progress } from "./progress.ts";

/** Progress of steps that run side by side as one: those of a stage whose units are known count together. */
export class JointProgress {
  readonly #onProgress: Progress | undefined;
  readonly #expected = new Map<string, Step[]>();
  readonly #done = new Map<Step, number>();
  readonly #details = new Map<Step, string>();

  constructor(onProgress: Progress | undefined) {
    this.#onProgress = onProgress;
  }

  /** Says that a step will be run. */
  expect(step: Step): void {
    const { stage, units } = step;
    if (units !== undefined) this.#expected.set(stage.name, [...(this.#expected.get(stage.name) ?? []), step]);
  }

  /** What a step that runs reports to. */
  of(step: Step): Progress | undefined {
    const onProgress = this.#onProgress;
    if (!onProgress || step.units === undefined) return onProgress;
    const together = this.#expected.get(step.stage.name) ?? [step];
    return (stage, done, total, detail) => {
      this.#done.set(step, total > 0 ? (step.units! * done) / total : 0);
      if (detail !== undefined) this.#details.set(step, detail);
      const sum = (of: (step: Step) => number) => together.reduce((all, one) => all + of(one), 0);
      const details = together.map((one) => this.#details.get(one)).filter((text) => text !== undefined);
      onProgress(
        stage,
        Math.floor(sum((one) => this.#done.get(one) ?? 0)),
        sum(({ units = 0 }) => units),
        details.length > 0 ? details.join(", ") : undefined,
      );
    };
  }
}
