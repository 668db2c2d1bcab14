import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { exposedPocket } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { relativeDifference } from "../../../../test/helpers/pictures.ts";
import { recordTask } from "../calibrate/calibrate.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { alignBatches, shapeOf } from "../model/denoiser-calls.ts";
import { openFolder } from "../model/open-folder.ts";
import { type ModelCall, readTrajectory, type Trajectory, writeTrajectory } from "./trajectory.ts";

const folder = temporaryFolder();

/** A call with `rows` rows whose elements count up from `start`. */
function callOf(rows: number, start: number, size = 4): ModelCall {
  const ramp = (count: number) => Float32Array.from({ length: count }, (_, index) => start + index);
  return {
    caseIndex: 0,
    step: 0,
    steps: 1,
    inputs: {
      sample: { type: "float32", dims: [rows, 1, 2, size / 2], data: ramp(rows * size) },
      timestep: { type: "int64", dims: [], data: BigInt64Array.of(999n) },
      encoder_hidden_states: { type: "float32", dims: [rows, 3, 1], data: ramp(rows * 3) },
    },
    output: { type: "float32", dims: [rows, 1, 2, size / 2], data: ramp(rows * size) },
  };
}

describe("trajectory files", () => {
  test("hold calls, their order and the cases' results", async () => {
    const trajectory: Trajectory = {
      task: "sketch",
      calls: [
        { ...callOf(2, 0.5), caseIndex: 0, step: 3, steps: 8 },
        { ...callOf(2, -7), caseIndex: 1, step: 0, steps: 8 },
      ],
      results: [
        { guidance: 3, latents: Float32Array.of(1, 2) },
        { guidance: 1, latents: Float32Array.of(-1, 0.25) },
      ],
    };
    const path = join(folder, "trajectory.safetensors");
    await writeTrajectory(path, trajectory);
    expect(await readTrajectory(path)).toEqual(trajectory);
  });

  test("keep inputs and outputs in the graph's own types", async () => {
    const inputs: ModelCall["inputs"] = {
      hidden_states: { type: "float16", dims: [1, 2], data: Uint16Array.of(0x3c00, 0xb555) },
      encoder_attention_mask: { type: "int64", dims: [1, 2], data: BigInt64Array.of(1n, 0n) },
      timestep: { type: "int32", dims: [1], data: Int32Array.of(-7) },
      time_ids: { type: "float64", dims: [1, 1], data: Float64Array.of(1 / 3) },
      is_padded: { type: "bool", dims: [1, 2], data: Uint8Array.of(1, 0) },
    };
    const output: ModelCall["output"] = { type: "float16", dims: [1, 2], data: Uint16Array.of(0, 0x7bff) };
    const trajectory: Trajectory = { task: "a", calls: [{ caseIndex: 0, step: 0, steps: 1, inputs, output }] };
    const path = join(folder, "types.safetensors");
    await writeTrajectory(path, trajectory);
    expect(await readTrajectory(path)).toEqual(trajectory);
  });

  test("another file is refused by name", async () => {
    const path = join(folder, "other.safetensors");
    await writeSafetensors(path, [{ name: "x", dtype: "F32", shape: [1], data: Float32Array.of(1) }]);
    await expect(readTrajectory(path)).rejects.toThrow(`${path}: is not a recorded trajectory`);
  });
});

describe("a recorded task", () => {
  let exposed: string;
  let recorded: Trajectory;
  beforeAll(async () => {
    exposed = await exposedPocket();
    const path = join(folder, "flat.safetensors");
    const cases = [4, 5].map((seed) => ({ prompt: "owl animal bird", seed, steps: 2 }));
    const progress: [string, number, number][] = [];
    await recordTask(exposed, "flat", cases, path, {
      onProgress: (stage, done, total) => progress.push([stage, done, total]),
    });
    recorded = await readTrajectory(path);
    expect(progress).toEqual([
      ["recording flat", 1, 2],
      ["recording flat", 2, 2],
    ]);
  });

  test("has every step of every case, both rows of the guidance in one call", () => {
    expect(recorded.calls.map(({ caseIndex, step, steps }) => [caseIndex, step, steps])).toEqual([
      [0, 0, 2],
      [0, 1, 2],
      [1, 0, 2],
      [1, 1, 2],
    ]);
    expect(shapeOf([recorded])).toEqual({ batch: 2, height: 16, width: 16, tokens: 16 });
    expect(Object.keys(recorded.calls[0].inputs).sort()).toEqual(["encoder_hidden_states", "sample", "timestep"]);
  });

  test("its outputs are what the denoiser says to its inputs", async () => {
    const pipeline = await openFolder(exposed);
    await pipeline.use("flat");
    for (const { inputs, output } of recorded.calls.slice(1, 3)) {
      const [again] = Object.values(await pipeline.runComponent("unet", inputs));
      expect(relativeDifference(again.data as Float32Array, output.data as Float32Array)).toBeLessThan(1e-6);
    }
    await pipeline.dispose();
  });
});

describe("batches", () => {
  test("single rows are repeated up to the largest batch; others stay", () => {
    const guided: Trajectory = { task: "a", calls: [callOf(2, 10)] };
    const single: Trajectory = { task: "b", calls: [callOf(1, 0)] };
    const [first, second] = alignBatches([guided, single]);
    expect(first).toEqual(guided);
    const [{ inputs, output }] = second.calls;
    expect(inputs.sample.dims).toEqual([2, 1, 2, 2]);
    expect([...(inputs.sample.data as Float32Array)]).toEqual([0, 1, 2, 3, 0, 1, 2, 3]);
    expect([...(output.data as Float32Array)]).toEqual([0, 1, 2, 3, 0, 1, 2, 3]);
    expect([...(inputs.encoder_hidden_states.data as Float32Array)]).toEqual([0, 1, 2, 0, 1, 2]);
    expect(inputs.timestep).toEqual(single.calls[0].inputs.timestep);
  });

  test("pictures of different sizes are refused by task and input", () => {
    const small: Trajectory = { task: "a", calls: [callOf(1, 0, 4)] };
    const large: Trajectory = { task: "b", calls: [callOf(1, 0, 8)] };
    expect(() => shapeOf([small, large])).toThrow(/task "b", input "sample".*expected \[1,1,2,2\], got \[1,1,2,4\]/);
  });
});
