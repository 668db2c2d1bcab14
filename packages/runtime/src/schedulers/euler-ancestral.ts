import { betaOptions, defineScheduler, spacingOptions, zeroSnrOptions } from "./definition.ts";
import { EulerScheduler } from "./euler.ts";
import { betaLevels } from "./noise-schedule.ts";
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
  protected override advance(
    modelOutput: Float32Array,
    index: number,
    sample: Float32Array,
    out: Float32Array,
    noise: () => Float32Array,
  ): void {
    const sigma = this.sigmas[index];
    const next = this.sigmas[index + 1];
    // Variance of the step splits into what the deterministic part keeps (down) and what fresh noise restores (up).
    const up = Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2);
    const drawn = up > 0 ? noise() : undefined;
    this.descend(modelOutput, index, Math.sqrt(next ** 2 - up ** 2), sample, out);
    if (drawn) combine(out, 1, drawn, up, out);
  }
}
