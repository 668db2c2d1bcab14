import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import { loadModel } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import {
  type BuildConfig,
  type DistillAdapterOptions,
  type DistillAdapterResult,
  type DistillSettingsInput,
  distillAdapter,
  distillSchema,
  expose,
  recordDataset,
  recordTeacher,
} from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { observeTasks } from "../packages/quad/src/calibrate/calibrate.ts";
import { factorInputs, packFactors } from "../packages/quad/src/distill/factor-codes.ts";
import { buildStudent, distillNames } from "../packages/quad/src/distill/student-graph.ts";
import { teacherBatches } from "../packages/quad/src/distill/teacher-batches.ts";
import { encodeAdapter } from "../packages/quad/src/factors/encode-factors.ts";
import { loadFactors } from "../packages/quad/src/factors/load-factors.ts";
import { alignBatches } from "../packages/quad/src/model/denoiser-calls.ts";
import { componentFile } from "../packages/quad/src/model/graph-files.ts";
import { denoiserSlots } from "../packages/quad/src/model/slots.ts";
import { buildProfile } from "../packages/quad/src/profile/build-profile.ts";
import { prepareGraph } from "../packages/quad/src/quantizable/prepare-graph.ts";
import { pointEncoding, readProfile } from "../packages/quad/src/records/profile.ts";
import { readTrajectory, type Trajectory } from "../packages/quad/src/records/trajectory.ts";
import { SimulatedPipeline } from "../packages/quad/src/simulate/simulated-pipeline.ts";
import { recordConfigured } from "../packages/quad/src/stages/calibrate.ts";
import { loadCases } from "../packages/quad/src/tasks/cases.ts";
import { LossSession } from "../packages/quad/src/train/training-graph.ts";
import { pocketFolder } from "./helpers/exposed-pocket.ts";
import { loadSmallBuild, scratchFolder } from "./helpers/small-build.ts";

const scheduler = {
  _class_name: "DDIMScheduler",
  ...{ num_train_timesteps: 1000, beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear" },
  ...{ clip_sample: false, prediction_type: "v_prediction", timestep_spacing: "trailing" },
};

let folder: string;
let config: BuildConfig;
let exposed: string;
let profile: string;
let trajectory: string;
const settings = (input: DistillSettingsInput = {}) =>
  distillSchema.parse({
    ...{
      pictures: 4,
      validationPictures: 1,
      steps: 6,
      batch: 2,
      warmup: 1,
      learningRate: 0.5,
      validateEvery: 3,
      checkpointEvery: 2,
    },
    ...input,
  });

beforeAll(async () => {
  folder = await scratchFolder();
  config = await loadSmallBuild(folder);
  exposed = join(folder, "exposed");
  profile = join(folder, "profile.json");
  trajectory = join(folder, "teacher.safetensors");
  await expose(config.model, { out: exposed, adapters: config.adapters });
  const trajectories: string[] = [];
  for (const task of ["flat", "sketch"]) {
    const file = join(folder, `${task}.trajectory.safetensors`);
    await recordConfigured(exposed, task, config.tasks[task], file, {});
    trajectories.push(file);
  }
  const observations = join(folder, "observations.safetensors");
  await observeTasks(exposed, trajectories, observations, { bins: 128, stepGroups: 1 });
  const policy = { ...config.policy, strategy: "anchor" as const };
  await buildProfile({
    ...{ exposed, trajectories, observations, policy },
    ...{ out: profile, placement: "cpu", scoreCalls: 1 },
  });
  await recordTeacher(exposed, "sketch", await loadCases(exposed, config.tasks.sketch), trajectory, settings());
}, 600_000);

const distil = (out: string, options: Partial<DistillAdapterOptions> = {}): Promise<DistillAdapterResult> =>
  distillAdapter({
    ...{ exposed, profile, adapter: "sketch", trajectory, out: join(folder, out), settings: settings() },
    ...options,
  });

function tensorsOf(path: string): Map<string, Float32Array> {
  const { tensors } = parseSafetensors(readFileSync(path), path);
  return new Map([...tensors.values()].map((tensor) => [tensor.name, toFloat32(tensor, path)]));
}

describe("a distillation run", () => {
  let whole: DistillAdapterResult;
  beforeAll(async () => {
    whole = await distil("whole");
  }, 120_000);

  test("writes the exposed format on the profile's grids; encoding gives back what was trained", async () => {
    const { slots } = await denoiserSlots(exposed);
    const { slots: json, policy, rank } = await readProfile(profile);
    const scales = new Map(Object.entries(json));
    const written = tensorsOf(whole.file);
    expect([...written.keys()].sort()).toEqual(
      [...tensorsOf(join(exposed, "adapters/sketch.safetensors")).keys()].sort(),
    );
    const { factors } = await loadFactors(exposed, slots, ["sketch"], join(folder, "whole"));
    const encoded = encodeAdapter(factors.get("sketch")!, slots.slots, scales, policy.adapterBits, false);
    expect(encoded.rank).toBe(rank);
    let moved = 0;
    const aligned = await alignedValues();
    for (const { name, data } of encoded.values) {
      expect(data).toEqual(written.get(name));
      moved += (data as Float32Array).filter((value, index) => value !== aligned.get(name)![index]).length;
    }
    expect(moved).toBeGreaterThan(0);
  });

  test("gives the same bytes again, also when it was interrupted at a random step and went on", async () => {
    const stopAt = 1 + new SeededRandom(8).integer(4);
    const controller = new AbortController();
    const onStep = ({ step }: { step: number }) => step === stopAt && controller.abort(new Error("stopped"));
    await expect(distil("resumed", { signal: controller.signal, onStep })).rejects.toThrow("stopped");
    expect(readdirSync(join(folder, "resumed")).some((name) => name.endsWith(".checkpoint"))).toBe(true);
    expect(existsSync(join(folder, "resumed/sketch.safetensors"))).toBe(false);
    const resumed = await distil("resumed");
    expect(resumed.resumedFrom).toBe(stopAt);
    expect(resumed.curve).toEqual(whole.curve);
    expect(readFileSync(resumed.file).equals(readFileSync(whole.file))).toBe(true);
    expect(readdirSync(join(folder, "resumed")).sort()).toEqual(["sketch.loss.json", "sketch.safetensors"]);
  });

  test("brings the student nearer to the teacher on pictures it was not trained on", async () => {
    const { curve, sqnrBefore, sqnrAfter } = await distil("longer", {
      settings: settings({ steps: 24, learningRate: 0.3, validateEvery: 8, averageDecay: 0.8 }),
    });
    expect(curve.evaluations[0]).toMatchObject({ step: 0 });
    expect(sqnrAfter).toBeGreaterThan(sqnrBefore + 0.2);
    const mean = (losses: number[]) => losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
    expect(mean(curve.losses.slice(-8))).toBeLessThan(mean(curve.losses.slice(0, 8)));
  });

  test("refuses adapters and profiles that are not there or not of this graph", async () => {
    await expect(distil("none", { adapter: "watercolour" })).rejects.toThrow(/watercolour\.safetensors/);
    const copy = join(folder, "other graph");
    mkdirSync(copy);
    cpSync(exposed, copy, { recursive: true });
    const file = join(copy, "unet/model.onnx");
    const bytes = readFileSync(file);
    cpSync(join(exposed, "vae_decoder/model.onnx"), file);
    expect(bytes.length).toBeGreaterThan(0);
    await expect(distil("none", { exposed: copy })).rejects.toThrow("the profile belongs to another graph");
    expect(existsSync(join(folder, "none"))).toBe(false);
  });
});

test("a folder of pictures takes the place of the teacher's own", async () => {
  const pictures = join(folder, "pictures");
  mkdirSync(pictures);
  for (const name of ["crab", "tulip"]) {
    cpSync(join(pocketFolder, `samples/picture-${name}.png`), join(pictures, `${name}.target.png`));
    cpSync(join(pocketFolder, `samples/sketch-${name}.png`), join(pictures, `${name}.input.png`));
    writeFileSync(join(pictures, `${name}.txt`), name);
  }
  const file = join(folder, "dataset.safetensors");
  await recordDataset(pocketFolder, exposed, "sketch", pictures, file, { pictures: 8, seed: 5 });
  const recorded = await readTrajectory(file);
  const steps = recorded.calls[0].steps;
  expect(recorded.calls).toHaveLength(2 * steps);
  expect(recorded.results!.map(({ guidance }) => guidance)).toEqual([2, 2]);
  const { validation } = teacherBatches(recorded, {
    ...{ calls: 2, validationPictures: 1, scheduler, timestep: { type: "int64", dims: [4] } },
    batchInputs: new Set<string>([...Object.values(distillNames), "sample", "timestep"]),
  });
  // What the objective asks for is the velocity of standard normal noise; the teacher was trained to say about that.
  const target = validation[0][distillNames.denoising].data as Float32Array;
  const teacher = validation[0][distillNames.teacher].data as Float32Array;
  const power = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0) / values.length;
  expect(power(target)).toBeGreaterThan(0.3);
  expect(power(target)).toBeLessThan(3);
  expect(power(target.map((value, index) => value - teacher[index]))).toBeLessThan(0.7 * power(target));
});

test("the student predicts what the simulated pipeline does with the same codes", async () => {
  const { component, slots } = await denoiserSlots(exposed);
  const shared = await readProfile(profile);
  const scales = new Map(Object.entries(shared.slots));
  const { calls, results } = alignBatches([await readTrajectory(trajectory)])[0] as Trajectory;
  const { results: recorded } = await readTrajectory(trajectory);
  expect(results ?? recorded).toHaveLength(4);
  const { factors } = await loadFactors(exposed, slots, ["flat", "sketch"]);
  const encoded = encodeAdapter(factors.get("sketch")!, slots.slots, scales, shared.policy.adapterBits, true);
  const model = () => loadModel(componentFile(exposed, component));
  const simulated = await SimulatedPipeline.open(
    exposed,
    component,
    await prepareGraph(model(), slots, shared.shape),
    slots,
    { placement: shared.placement, weightBits: 8, weightMethod: shared.policy.weightMethod },
  );
  simulated.setEncodings(simulated.points.map(({ name }) => pointEncoding(shared.points[name])));
  simulated.setAdapter("sketch", encoded);
  await simulated.pipeline.use("sketch");
  // The simulation's predictions take the teacher's place: the student must then have nothing to learn.
  const predicted = await Promise.all(calls.map(async (call) => simulated.predict(call)));
  await simulated.dispose();
  const toward = (outputs: Float32Array[]): Trajectory => ({
    task: "sketch",
    calls: calls.map((call, index) => ({
      ...call,
      output: { type: "float32", dims: call.output.dims, data: outputs[index] as Float32Array<ArrayBuffer> },
    })),
    results: recorded!,
  });
  const inputs = factorInputs(slots.slots, scales, new Set(encoded.values.map(({ name }) => name)));
  const prepared = await prepareGraph(model(), slots, { ...shared.shape, batch: 4 });
  const student = await buildStudent(prepared, slots, shared, inputs, {
    ...{ calls: 2, rowsPerCall: 2, rank: encoded.rank, reconstruction: 1, guided: 1, denoising: 0 },
    ...{ clipNorm: 1, weightDecay: 0 },
  });
  const session = await LossSession.open(student.forward, distillNames.parameters, 1);
  const start = packFactors(encoded.values, student.training.layout, inputs, shared.policy.adapterBits);
  const { timestep, batchInputs } = student;
  const distance = async (outputs: Float32Array[]) => {
    const { validation } = teacherBatches(toward(outputs), {
      ...{ calls: 2, validationPictures: 3, scheduler, timestep, batchInputs },
    });
    let sum = 0;
    for (const batch of validation) sum += await session.loss(start, batch);
    return sum / validation.length;
  };
  const fromTeacher = await distance(calls.map(({ output }) => output.data as Float32Array));
  const fromSimulation = await distance(predicted);
  await session.release();
  // A sum on the other side of a rounding boundary changes a little of what follows.
  expect(fromSimulation).toBeLessThan(0.05 * fromTeacher);
  expect(fromTeacher).toBeGreaterThan(1e-6);
});

async function alignedValues(): Promise<Map<string, Float32Array>> {
  const { slots } = await denoiserSlots(exposed);
  const { slots: scales, policy } = await readProfile(profile);
  const { factors } = await loadFactors(exposed, slots, ["flat", "sketch"]);
  const { values } = encodeAdapter(
    factors.get("sketch")!,
    slots.slots,
    new Map(Object.entries(scales)),
    policy.adapterBits,
    policy.align,
  );
  return new Map(values.map(({ name, data }) => [name, data as Float32Array]));
}
