import { alphaSigma, SeededRandom, type TensorData } from "@quad-lora/runtime";
import { describe, expect, test } from "vitest";
import { batchNames } from "./denoiser-graph.ts";
import { diffusionBatches, validationBatches } from "./diffusion-batches.ts";
import type { EncodedDataset } from "./encode-dataset.ts";

const random = new SeededRandom(11);
const normals = (length: number) => Float32Array.from({ length }, () => random.normal());
const dataset: EncodedDataset = {
  examples: Array.from({ length: 7 }, (_, index) => ({
    latents: normals(2 * 12),
    conditioning: Float32Array.from({ length: 3 * 12 }, () => index),
    caption: `caption ${index % 2}`,
  })),
  texts: new Map(
    ["", "caption 0", "caption 1"].map((caption, index) => [caption, new Float32Array(5 * 2).fill(index)]),
  ),
  ...{ latentChannels: 2, height: 3, width: 4, tokens: 5, textWidth: 2 },
};
const scheduler = {
  _class_name: "DDIMScheduler",
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  clip_sample: false,
};
const batch = 4;
const perRow = { type: "int64" as const, dims: [batch] };
const settings = { batch, captionDropout: 0, seed: 5, scheduler, timestep: perRow };
const floats = (tensor: TensorData) => tensor.data as Float32Array;
const timesOf = (tensors: Record<string, TensorData>) =>
  Array.from(tensors[batchNames.timestep].data as BigInt64Array, Number);

/** Latents of one row that sample and prediction together stand for, and the example it shows. */
function recover(tensors: Record<string, TensorData>, row: number, type: string) {
  const times = timesOf(tensors);
  const { alpha, sigma } = alphaSigma(scheduler)(times[Math.min(row, times.length - 1)]);
  const sample = floats(tensors[batchNames.sample]).subarray(row * 60, row * 60 + 60);
  const target = floats(tensors[batchNames.target]).subarray(row * 24, row * 24 + 24);
  const latents = Array.from(target, (output, i) =>
    type === "epsilon"
      ? (sample[i] - sigma * output) / alpha
      : type === "sample"
        ? output
        : alpha * sample[i] - sigma * output,
  );
  return { latents, example: sample[24] };
}

describe("batches", () => {
  test.each(["epsilon", "v_prediction", "sample"])("%s: the target leads back to the latents", async (type) => {
    const source = diffusionBatches(dataset, { ...settings, scheduler: { ...scheduler, prediction_type: type } });
    const tensors = (await source(0, new SeededRandom(2))) as Record<string, TensorData>;
    expect(tensors[batchNames.sample].dims).toEqual([batch, 5, 3, 4]);
    expect(tensors[batchNames.target].dims).toEqual([batch, 2, 3, 4]);
    for (let row = 0; row < batch; row++) {
      const { latents, example } = recover(tensors, row, type);
      latents.forEach((value, i) => {
        expect(value).toBeCloseTo(dataset.examples[example].latents[i], 3);
      });
      const text = floats(tensors[batchNames.text]).subarray(row * 10, row * 10 + 10);
      expect([...new Set(text)]).toEqual([1 + (example % 2)]);
    }
  });

  test("an epoch shows every example once, in an order of its own", async () => {
    const source = diffusionBatches(dataset, settings);
    const stream = new SeededRandom(2);
    const shown: number[] = [];
    for (let step = 0; step < 7; step++) {
      const tensors = (await source(step, stream)) as Record<string, TensorData>;
      for (let row = 0; row < batch; row++) shown.push(floats(tensors[batchNames.sample])[row * 60 + 24]);
    }
    const epochs = [0, 1, 2, 3].map((epoch) => shown.slice(epoch * 7, epoch * 7 + 7));
    for (const epoch of epochs) expect([...epoch].sort()).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(new Set(epochs.map(String)).size).toBe(4);
    // A step can be asked for out of order, as after a resume.
    const again = (await source(2, new SeededRandom(9))) as Record<string, TensorData>;
    expect(floats(again[batchNames.sample])[24]).toBe(shown[8]);
  });

  test("captions are dropped as often as asked, noise is normal, time steps cover the schedule", async () => {
    const source = diffusionBatches(dataset, { ...settings, captionDropout: 0.3 });
    const stream = new SeededRandom(8);
    let dropped = 0;
    const times: number[] = [];
    const steps = 400;
    for (let step = 0; step < steps; step++) {
      const tensors = (await source(step, stream)) as Record<string, TensorData>;
      for (let row = 0; row < batch; row++) if (floats(tensors[batchNames.text])[row * 10] === 0) dropped++;
      times.push(...timesOf(tensors));
    }
    // Three standard deviations of a share of 1600 draws.
    expect(Math.abs(dropped / (steps * batch) - 0.3)).toBeLessThan(0.035);
    expect(Math.abs(times.reduce((a, b) => a + b) / times.length - 499.5)).toBeLessThan(22);
    expect(Math.min(...times)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...times)).toBeLessThanOrEqual(999);
  });

  test("one time step for all rows where the graph takes only one", async () => {
    const source = diffusionBatches(dataset, { ...settings, timestep: { type: "int64", dims: [] } });
    const tensors = (await source(0, new SeededRandom(2))) as Record<string, TensorData>;
    expect(timesOf(tensors)).toHaveLength(1);
    for (let row = 0; row < batch; row++) {
      const { latents, example } = recover(tensors, row, "epsilon");
      expect(latents[3]).toBeCloseTo(dataset.examples[example].latents[3], 2);
    }
  });
});

test("validation batches are fixed, show every example and spread their time steps", () => {
  const options = { batch, seed: 5, scheduler, timestep: perRow };
  const batches = validationBatches(dataset, options);
  expect(validationBatches(dataset, options)).toEqual(batches);
  const shown = batches.flatMap((tensors) =>
    Array.from({ length: batch }, (_, row) => floats(tensors[batchNames.sample])[row * 60 + 24]),
  );
  expect(shown).toEqual([0, 1, 2, 3, 4, 5, 6, 0]);
  const times = batches.flatMap(timesOf).sort((a, b) => a - b);
  const gaps = [...times, 1000].map((time, index) => time - (times[index - 1] ?? 0));
  expect(Math.max(...gaps)).toBeLessThan(280);
});
