import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { alphaSigma, createScheduler, type Scheduler } from "./index.ts";

interface Case {
  pipeline: string;
  run: string;
  config: Record<string, unknown>;
  steps: number;
  uniform?: boolean;
  imageTokens?: number;
  timesteps: number[];
  sigmas: number[];
}

const file = new URL("../../../../test/reference/flow-schedulers.json", import.meta.url);
const reference = JSON.parse(readFileSync(file, "utf8")) as { cases: Case[] };

const euler = { _class_name: "FlowMatchEulerDiscreteScheduler" };
const flow = { use_flow_sigmas: true, prediction_type: "flow_prediction" };
const dpm = { ...flow, _class_name: "DPMSolverMultistepScheduler" };
const uniPc = { ...flow, _class_name: "UniPCMultistepScheduler" };

/** Noise level before an evaluation: all noise is what addNoise makes of a black picture. */
function sigmaAt(scheduler: Scheduler, index: number): number {
  const out = new Float32Array(1);
  scheduler.addNoise(Float32Array.of(0), Float32Array.of(1), index, out);
  return out[0];
}

function sigmasOf(scheduler: Scheduler): number[] {
  return scheduler.timesteps.map((_, index) => sigmaAt(scheduler, index));
}

describe("timesteps and noise levels of diffusers 0.32", () => {
  test.each(reference.cases)("$pipeline $run", ({ config, steps, uniform, imageTokens, timesteps, sigmas }) => {
    const evenly = Array.from({ length: steps }, (_, step) => 1 - step / steps);
    const scheduler = createScheduler(config, steps, { imageTokens, sigmas: uniform ? evenly : undefined });
    expect(scheduler.timesteps).toHaveLength(timesteps.length);
    timesteps.forEach((timestep, index) => {
      expect(Math.abs(scheduler.timesteps[index] - timestep)).toBeLessThan(1e-3);
      expect(Math.abs(sigmaAt(scheduler, index) - sigmas[index])).toBeLessThan(1e-6);
    });
  });
});

describe("Gaussian data of deviation 0.5, whose velocity is known", () => {
  // The scheduler's own level in place of the timestep's: solvers round timesteps to whole ones.
  const velocity = (sample: number, sigma: number) => {
    const variance = ((1 - sigma) * 0.5) ** 2 + sigma ** 2;
    return ((sigma - (1 - sigma) * 0.25) * sample) / variance;
  };
  const deviation = (sigma: number) => Math.hypot((1 - sigma) * 0.5, sigma);
  // Between a quarter and three quarters of the steps: at pure noise and at none the logarithms have no limit.
  const error = (config: Record<string, unknown>, steps: number) => {
    const scheduler = createScheduler(config, steps);
    const [first, last] = [steps / 4, (steps * 3) / 4];
    const sample = Float32Array.of(deviation(sigmaAt(scheduler, first)));
    for (let index = first; index < last; index++) {
      const output = Float32Array.of(velocity(sample[0], sigmaAt(scheduler, index)));
      scheduler.step(output, index, sample, sample);
    }
    return Math.abs(sample[0] / deviation(sigmaAt(scheduler, last)) - 1);
  };

  test.each([
    ["Euler", { ...euler, shift: 3 }, 1],
    ["DPM-Solver++ 1", { ...dpm, flow_shift: 3, solver_order: 1 }, 1],
    ["DPM-Solver++ 2", { ...dpm, flow_shift: 3 }, 2],
    ["UniPC 2", { ...uniPc, flow_shift: 3 }, 3],
  ] as const)("%s converges", (_name, config, order) => {
    expect(Math.log2(error(config, 40) / error(config, 80))).toBeGreaterThan(order - 0.15);
  });
});

test("a model that knows the original and the noise keeps every solver on the line between them", () => {
  const configs = fc.record({
    config: fc.constantFrom(euler, dpm, { ...dpm, solver_order: 3 }, uniPc, { ...uniPc, solver_order: 3 }),
    shift: fc.constantFrom(1, 3, 7),
    steps: fc.constantFrom(1, 4, 9, 25),
  });
  fc.assert(
    fc.property(configs, fc.integer({ min: -20, max: 20 }), ({ config, shift, steps }, tenths) => {
      const scheduler = createScheduler({ ...config, shift, flow_shift: shift, final_sigmas_type: "zero" }, steps);
      const [original, noise] = [Float32Array.of(tenths / 10), Float32Array.of(-0.7)];
      const sample = new Float32Array(1);
      const expected = new Float32Array(1);
      scheduler.addNoise(original, noise, 0, sample);
      for (let index = 0; index < steps; index++) {
        scheduler.step(Float32Array.of(noise[0] - original[0]), index, sample, sample);
        if (index < steps - 1) scheduler.addNoise(original, noise, index + 1, expected);
        else expected.set(original);
        expect(Math.abs(sample[0] - expected[0])).toBeLessThan(2e-4);
      }
    }),
    { seed: 21, numRuns: 120 },
  );
});

describe("noise levels of FlowMatchEuler", () => {
  const levels = (config: Record<string, unknown>, options = {}) =>
    sigmasOf(createScheduler({ ...euler, ...config }, 5, options));

  test("a shift of s makes the halfway level s / (s + 1)", () => {
    expect(levels({ shift: 3 }, { sigmas: [1, 0.75, 0.5, 0.25, 0.1] })[2]).toBeCloseTo(3 / 4, 6);
    expect(levels({ shift: 1 }, { sigmas: [1, 0.75, 0.5, 0.25, 0.1] })[2]).toBe(0.5);
  });

  test("a shift by tokens is e^mu, or mu, which goes from base_shift to max_shift", () => {
    const middle = (imageTokens: number, time_shift_type: string) =>
      levels({ use_dynamic_shifting: true, time_shift_type }, { imageTokens, sigmas: [1, 0.75, 0.5, 0.25, 0.1] })[2];
    for (const [tokens, mu] of [
      [256, 0.5],
      [4096, 1.15],
      [2176, 0.825],
    ]) {
      expect(middle(tokens, "exponential")).toBeCloseTo(Math.exp(mu) / (Math.exp(mu) + 1), 6);
      expect(middle(tokens, "linear")).toBeCloseTo(mu / (mu + 1), 6);
    }
  });

  test("shift_terminal is where the last step starts, and pure noise stays pure noise", () => {
    const stretched = levels({ shift: 3, shift_terminal: 0.1 });
    expect(stretched[0]).toBe(1);
    expect(stretched[4]).toBeCloseTo(0.1, 6);
  });

  test("exponential levels fall by one factor, Karras's by equal steps of their seventh root", () => {
    const plain = levels({ shift: 3 });
    for (const [option, scale] of [
      ["use_exponential_sigmas", Math.log],
      ["use_karras_sigmas", (sigma: number) => sigma ** (1 / 7)],
    ] as const) {
      const respaced = levels({ shift: 3, [option]: true });
      expect(respaced[0]).toBeCloseTo(plain[0], 6);
      expect(respaced[4]).toBeCloseTo(plain[4], 6);
      const differences = [1, 2, 3, 4].map((step) => scale(respaced[step]) - scale(respaced[step - 1]));
      for (const difference of differences) expect(difference).toBeCloseTo(differences[0], 5);
    }
  });
});

test("a stochastic step noises the predicted original anew", () => {
  const scheduler = createScheduler({ ...euler, stochastic_sampling: true }, 4);
  const [sigma, next] = [sigmaAt(scheduler, 1), sigmaAt(scheduler, 2)];
  const out = new Float32Array(1);
  scheduler.step(Float32Array.of(0.4), 1, Float32Array.of(2), out, () => Float32Array.of(-3));
  expect(out[0]).toBeCloseTo((1 - next) * (2 - sigma * 0.4) - 3 * next, 5);
  expect(() => scheduler.step(out, 1, out, out)).toThrow(/noise/);
  const last = new Float32Array(1);
  scheduler.step(Float32Array.of(0.4), 3, Float32Array.of(2), last);
  expect(last[0]).toBeCloseTo(2 - sigmaAt(scheduler, 3) * 0.4, 5);
});

test("for training, a timestep of flow matching is its noise level in thousandths, whatever the shift", () => {
  for (const config of [{ ...euler, shift: 3 }, dpm]) {
    const at = alphaSigma(config);
    for (const timestep of [0, 250, 999.5, 1000]) {
      expect(at(timestep).sigma).toBeCloseTo(timestep / 1000, 9);
      expect(at(timestep).alpha).toBeCloseTo(1 - timestep / 1000, 9);
    }
    expect(() => at(1001)).toThrow(RangeError);
  }
});
