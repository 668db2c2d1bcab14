import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createScheduler } from "./index.ts";

interface Case {
  scheduler: string;
  config: Record<string, unknown>;
  steps: number;
  init_noise_sigma: number;
  timesteps: number[];
  samples: number[][];
  noise?: number[][];
}

const file = new URL("../../../../test/reference/schedulers.json", import.meta.url);
const reference = JSON.parse(readFileSync(file, "utf8")) as { start: number[]; cases: Case[] };

/** The model of the reference file, on the scaled input. */
function model(input: Float32Array, timestep: number): Float32Array {
  return input.map((value) => Math.tanh(0.7 * value + Math.sin(timestep / 100)));
}

/** Largest difference in units of max(1, |expected|). */
function difference(actual: Float32Array, expected: readonly number[]): number {
  return Math.max(...expected.map((value, i) => Math.abs(actual[i] - value) / Math.max(1, Math.abs(value))));
}

describe("trajectories of diffusers 0.24", () => {
  test.each(
    reference.cases.map((entry, index) => [index, entry.scheduler, JSON.stringify(entry.config), entry] as const),
  )("%i %s %s", (_index, name, _text, entry) => {
    const scheduler = createScheduler({ _class_name: name, ...entry.config }, entry.steps);
    expect(scheduler.timesteps).toHaveLength(entry.samples.length);
    entry.timesteps.forEach((timestep, i) => {
      expect(Math.abs(scheduler.timesteps[i] - timestep)).toBeLessThan(1e-3);
    });
    expect(Math.abs(scheduler.initNoiseSigma / entry.init_noise_sigma - 1)).toBeLessThan(1e-6);

    const sample = Float32Array.from(reference.start, (value) => value * scheduler.initNoiseSigma);
    const input = new Float32Array(sample.length);
    entry.samples.forEach((expected, index) => {
      scheduler.scaleModelInput(sample, index, input);
      const output = model(input, scheduler.timesteps[index]);
      const noise = () => Float32Array.from(entry.noise![index]);
      // In place, the way pipelines call it.
      scheduler.step(output, index, sample, sample, noise);
      expect(difference(sample, expected), `after step ${index}`).toBeLessThan(1e-4);
    });
  });
});
