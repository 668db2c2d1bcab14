import { betaOptions, defineScheduler, spacingOptions, zeroSnrOptions } from "./definition.ts";
import { EulerScheduler } from "./euler.ts";
import { betaLevels } from "./noise-schedule.ts";
import type { Step } from "./sampler.ts";
import { combine } from "./scheduler.ts";

export const eulerAncestral = defineScheduler({
  classes: ["EulerAncestralDiscreteScheduler"],
  options: { ...betaOptions, ...zeroSnrOptions, ...spacingOptions("linspace") },
  levels: betaLevels,
  create: (config, request) =>
    new EulerAncestralScheduler({ ...config, use_karras_sigmas: false, use_exponential_sigmas: false }, request),
});

/** Euler's method that goes further down at every step and adds new noise. */
class EulerAncestralScheduler extends EulerScheduler {
  protected override advance(step: Step): void {
    const { index, out } = step;
    const sigma = this.sigmas[index];
    const next = this.sigmas[index + 1];
    // Variance of the step splits into what the deterministic part keeps (down) and what fresh noise restores (up).
    const up = Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2);
    const drawn = up > 0 ? step.noise() : undefined;
    this.descend(step, Math.sqrt(next ** 2 - up ** 2));
    if (drawn) combine(out, 1, drawn, up, out);
  }
}
