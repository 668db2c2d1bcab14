import { alphaSigma, SeededRandom, type TensorData } from "@quad-lora/runtime";
import { describe, expect, test } from "vitest";
import type { Profile } from "../records/profile.ts";
import type { Trajectory } from "../records/trajectory.ts";
import { distillNames } from "./student-graph.ts";
import { refuseOtherSize, rowsPerCall, teacherBatches } from "./teacher-batches.ts";

const scheduler = {
  _class_name: "DDIMScheduler",
  ...{ num_train_timesteps: 1000, beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear" },
  ...{ clip_sample: false, prediction_type: "v_prediction", timestep_spacing: "trailing" },
};

describe("teacher batches", () => {
  const [channels, plane, guidance] = [4, 4, 3];
  const times = [900, 400, 20];
  const random = new SeededRandom(3);
  const normals = (length: number) => Float32Array.from({ length }, () => random.normal());
  const latents = Array.from({ length: 3 }, () => normals(channels * plane));
  const noises: Float32Array[] = [];
  const synthetic: Trajectory = {
    task: "synthetic",
    results: latents.map((final) => ({ guidance, latents: final })),
    calls: latents.flatMap((final, caseIndex) =>
      times.map((time, step) => {
        const { alpha, sigma } = alphaSigma(scheduler)(time);
        const noise = normals(channels * plane);
        noises.push(noise);
        const noisy = final.map((value, index) => alpha * value + sigma * noise[index]);
        // Two rows, each with a channel of conditioning behind the latents.
        const sample = new Float32Array(2 * (channels + 1) * plane);
        for (const row of [0, 1]) sample.set(noisy, row * (channels + 1) * plane);
        return {
          ...{ caseIndex, step, steps: times.length },
          inputs: {
            sample: { type: "float32" as const, dims: [2, channels + 1, 2, 2], data: sample },
            timestep: { type: "int64" as const, dims: [], data: BigInt64Array.of(BigInt(time)) },
          },
          // Later steps speak more softly.
          output: {
            type: "float32" as const,
            dims: [2, channels, 2, 2],
            data: normals(2 * channels * plane).map((value) => value / (step + 1)),
          },
        };
      }),
    ),
  };
  const all = new Set<string>([...Object.values(distillNames), "sample", "timestep"]);
  const batches = (timestepDims: number[]) =>
    teacherBatches(synthetic, {
      ...{ calls: 2, validationPictures: 1, scheduler, batchInputs: all },
      timestep: { type: "int64", dims: timestepDims },
    });
  const floats = (tensor: { data: unknown }) => tensor.data as Float32Array;

  test("the denoising target is the velocity of the noise that led to the sample", () => {
    const { validation } = batches([4]);
    const target = floats(validation[0][distillNames.denoising]);
    const { alpha, sigma } = alphaSigma(scheduler)(times[0]);
    const noise = noises[6];
    for (let i = 0; i < channels * plane; i++) {
      const velocity = alpha * noise[i] - sigma * latents[2][i];
      expect(target[i]).toBeCloseTo(velocity, 4);
      expect(target[channels * plane + i]).toBeCloseTo(velocity, 4);
    }
  });

  test("every time step weighs the same, plain and guided", () => {
    const { validation } = batches([4]);
    const { [distillNames.rowWeights]: rows, [distillNames.callWeights]: calls } = validation[0];
    for (const step of [0, 1]) {
      const ofStep = synthetic.calls
        .filter((call) => call.step === step)
        .map(({ output }) => output.data as Float32Array);
      const square = ofStep.flatMap((values) => [...values]).reduce((sum, value) => sum + value * value, 0);
      expect(floats(rows)[2 * step]).toBeCloseTo((ofStep.length * 2 * channels * plane) / square, 3);
      const size = channels * plane;
      const guided = ofStep.flatMap((values) =>
        Array.from({ length: size }, (_, i) => (1 - guidance) * values[i] + guidance * values[size + i]),
      );
      const power = guided.reduce((sum, value) => sum + value * value, 0);
      expect(floats(calls)[step]).toBeCloseTo(guided.length / power, 3);
    }
    expect([...floats(validation[0][distillNames.guidance])]).toEqual([-2, 3, -2, 3]);
  });

  test("validation's pictures take no part in training, and batches depend on nothing but the random numbers", () => {
    const { source, validation, trainingCalls } = batches([4]);
    expect(trainingCalls).toBe(6);
    const held = synthetic.calls.slice(6).map(({ output }) => [...(output.data as Float32Array)].join());
    const seen = new Set<string>();
    const half = 2 * channels * plane;
    for (let step = 0; step < 30; step++) {
      const batch = source(step, new SeededRandom(step)) as Record<string, TensorData>;
      const teacher = floats(batch[distillNames.teacher]);
      for (const start of [0, half]) seen.add([...teacher.subarray(start, start + half)].join());
      expect(source(step, new SeededRandom(step))).toEqual(batch);
    }
    expect(seen.size).toBe(6);
    for (const text of held) expect(seen.has(text)).toBe(false);
    expect(validation).toHaveLength(2);
  });

  test("graphs with one time step for all rows get calls of one time step", () => {
    const { source, validation } = batches([]);
    for (let step = 0; step < 10; step++) {
      const batch = source(step, new SeededRandom(step)) as Record<string, TensorData>;
      expect(batch.timestep.dims).toEqual([]);
      const [first, second] = floats(batch[distillNames.callWeights]);
      expect(first).toBe(second);
    }
    expect(validation).toHaveLength(3);
  });
});

describe("recorded calls", () => {
  const floats = (dims: number[]) => {
    return { type: "float32" as const, dims, data: new Float32Array(dims.reduce((a, b) => a * b, 1)) };
  };
  const recorded = (...rows: number[]): Trajectory => ({
    task: "task",
    calls: rows.map((count, step) => ({
      ...{ caseIndex: 0, step, steps: rows.length },
      inputs: { sample: floats([count, 4, 2, 3]), encoder_hidden_states: floats([count, 5, 6]) },
      output: floats([count, 4, 2, 3]),
    })),
  });
  const profile = (height: number, width: number, tokens: number) =>
    ({ shape: { batch: 2, height, width, tokens } }) as Profile;

  test("have one number of rows", () => {
    expect(rowsPerCall(recorded(2, 2))).toBe(2);
    expect(() => rowsPerCall(recorded(1, 2))).toThrow(/different numbers of rows/);
  });

  test("have the latents and tokens that a profile is for, whatever its batch", () => {
    refuseOtherSize(profile(2, 3, 5), [recorded(1), recorded(1)], "other", "file");
    for (const other of [profile(3, 2, 5), profile(2, 3, 6)]) {
      expect(() => refuseOtherSize(other, [recorded(1)], "another size", "profile.json")).toThrow(
        /^profile\.json: another size .*latents 2 x 3, 5 tokens/,
      );
    }
  });
});
