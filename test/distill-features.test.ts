import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import { encodeModel, loadModel, type Model, writeTemporary } from "@quad-lora/onnx";
import type { TensorData } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { type DistillSettingsInput, distillAdapter, distillSchema, expose, recordTeacher } from "quad-lora";
import { beforeAll, expect, test } from "vitest";
import { observeTasks } from "../packages/quad/src/calibrate/calibrate.ts";
import { factorInputs, packFactors } from "../packages/quad/src/distill/factor-codes.ts";
import { findFeatureBlocks } from "../packages/quad/src/distill/feature-blocks.ts";
import { FeatureTeacher } from "../packages/quad/src/distill/feature-teacher.ts";
import { buildStudent, distillNames, type StudentOptions } from "../packages/quad/src/distill/student-graph.ts";
import { teacherBatches } from "../packages/quad/src/distill/teacher-batches.ts";
import { encodeAdapter } from "../packages/quad/src/factors/encode-factors.ts";
import { loadFactors } from "../packages/quad/src/factors/load-factors.ts";
import { componentFile } from "../packages/quad/src/model/graph-files.ts";
import { denoiserSlots } from "../packages/quad/src/model/slots.ts";
import { buildProfile } from "../packages/quad/src/profile/build-profile.ts";
import { prepareGraph } from "../packages/quad/src/quantizable/prepare-graph.ts";
import { encodingRange } from "../packages/quad/src/quantization/index.ts";
import { pointEncoding, readProfile } from "../packages/quad/src/records/profile.ts";
import { readTrajectory } from "../packages/quad/src/records/trajectory.ts";
import { buildSimulation, encodingInputs } from "../packages/quad/src/simulate/simulation-graph.ts";
import { recordConfigured } from "../packages/quad/src/stages/calibrate.ts";
import { loadCases } from "../packages/quad/src/tasks/cases.ts";
import { TrainingSession } from "../packages/quad/src/train/training-graph.ts";
import { loadSmallBuild, scratchFolder } from "./helpers/small-build.ts";

let folder: string;
let exposed: string;
let profile: string;
let trajectory: string;

const settings = (input: DistillSettingsInput = {}) =>
  distillSchema.parse({
    ...{ pictures: 3, validationPictures: 1, steps: 6, batch: 2, warmup: 1, learningRate: 0.5, validateEvery: 6 },
    ...input,
  });

beforeAll(async () => {
  folder = await scratchFolder();
  const config = await loadSmallBuild(folder);
  exposed = join(folder, "exposed");
  profile = join(folder, "profile.json");
  trajectory = join(folder, "teacher.safetensors");
  await expose(config.model, { out: exposed, adapters: { sketch: config.adapters.sketch } });
  const recorded = join(folder, "recorded.safetensors");
  await recordConfigured(exposed, "sketch", config.tasks.sketch, recorded, {});
  const observations = join(folder, "observations.safetensors");
  await observeTasks(exposed, [recorded], observations, { bins: 128, stepGroups: 1 });
  await buildProfile({
    ...{ exposed, trajectories: [recorded], observations, policy: config.policy },
    ...{ out: profile, placement: "cpu", scoreCalls: 1 },
  });
  await recordTeacher(exposed, "sketch", await loadCases(exposed, config.tasks.sketch), trajectory, settings());
}, 600_000);

// What PyTorch's blocks return, by the graph's own names: diffusers' blocks end in a down- or upsampler, an attention, or a
// residual sum.
const blockOutputs = {
  "down_blocks.0": "/down_blocks.0/downsamplers.0/conv/Conv_output_0",
  "down_blocks.1": "/down_blocks.1/downsamplers.0/conv/Conv_output_0",
  "down_blocks.2": "/down_blocks.2/attentions.0/Add_output_0",
  mid_block: "/mid_block/resnets.1/Add_1_output_0",
  "up_blocks.0": "/up_blocks.0/upsamplers.0/conv/Conv_output_0",
  "up_blocks.1": "/up_blocks.1/upsamplers.0/conv/Conv_output_0",
  "up_blocks.2": "/up_blocks.2/resnets.1/Add_1_output_0",
};

/** Graph, profile, and sketch's factors: as given, and on the profile's grids. */
async function parts() {
  const { component, slots } = await denoiserSlots(exposed);
  const shared = await readProfile(profile);
  const { factors } = await loadFactors(exposed, slots, ["sketch"]);
  const scales = new Map(Object.entries(shared.slots));
  const encoded = encodeAdapter(factors.get("sketch")!, slots.slots, scales, shared.policy.adapterBits, true);
  const inputs = factorInputs(slots.slots, scales, new Set(encoded.values.map(({ name }) => name)));
  const file = join(exposed, "adapters/sketch.safetensors");
  const { tensors } = parseSafetensors(readFileSync(file), file);
  const original = new Map([...tensors.values()].map((tensor) => [tensor.name, toFloat32(tensor, file)]));
  const prepare = () =>
    prepareGraph(loadModel(componentFile(exposed, component)), slots, { ...shared.shape, batch: 2 });
  return { slots, shared, encoded, original, inputs, prepare };
}

async function run(model: Model, feeds: Record<string, TensorData>): Promise<Record<string, Float32Array>> {
  const file = await writeTemporary(model);
  const session = await ort.InferenceSession.create(file.path, { intraOpNumThreads: 1, logSeverityLevel: 3 });
  const tensors = session.inputNames.map((name): [string, ort.Tensor] => {
    const { type, data, dims } = feeds[name];
    return [name, new ort.Tensor(type, data as Float32Array, dims)];
  });
  const results = await session.run(Object.fromEntries(tensors));
  await session.release();
  file.remove();
  return Object.fromEntries(Object.entries(results).map(([name, { data }]) => [name, data as Float32Array]));
}

/** Adds inner values to a graph's outputs. */
function giveOut(model: Model, names: readonly string[]): Model {
  const values = new Map([...model.graph.nodes].map((node) => [node.output().name, node.output()]));
  model.graph.outputs.push(...names.map((name) => values.get(name)!));
  return model;
}

test("blocks are found by their module paths, and what matches nothing is refused", async () => {
  const { prepare } = await parts();
  const prepared = await prepare();
  const { featureBlocks } = settings();
  const blocks = findFeatureBlocks(prepared, featureBlocks);
  expect(Object.fromEntries(blocks.map(({ name, output }) => [name, output]))).toEqual(blockOutputs);
  expect(blocks[3].dims).toEqual([2, 144, 4, 4]);
  const [inner] = findFeatureBlocks(prepared, ["up_blocks.1.resnets.0$"]);
  expect(inner.output).toBe("/up_blocks.1/resnets.0/Add_1_output_0");
  expect(() => findFeatureBlocks(prepared, ["^blocks[.]0$"])).toThrow(
    /distill.featureBlocks: no block.*expected regular expressions that match .*down_blocks.0, .*mid_block.*got \^blocks/,
  );
});

test("the features' error is what the two graphs' activations give, and the loss has it with its weight", async () => {
  const { slots, shared, encoded, original, inputs, prepare } = await parts();
  const prepared = await prepare();
  const blocks = findFeatureBlocks(prepared, settings().featureBlocks);
  const options: StudentOptions = {
    ...{ calls: 1, rowsPerCall: 2, rank: encoded.rank, reconstruction: 0, guided: 0, denoising: 0 },
    ...{ clipNorm: 1, weightDecay: 0, features: 3, blocks },
  };
  const student = await buildStudent(prepared, slots, shared, inputs, options);
  const teacher = await FeatureTeacher.open(prepared, slots, { rank: encoded.rank, tensors: original }, blocks, 1);
  const { timestep, batchInputs, training } = student;
  const scheduler = { _class_name: "DDIMScheduler", num_train_timesteps: 1000, prediction_type: "v_prediction" };
  const recorded = await readTrajectory(trajectory);
  const { validation } = teacherBatches(recorded, {
    ...{ calls: 1, validationPictures: 1, scheduler, timestep, batchInputs },
  });
  const batch = await teacher.withFeatures(validation[0]);
  await teacher.release();
  const session = await TrainingSession.open(training, distillNames.parameters, 1);
  const parameters = packFactors(encoded.values, training.layout, inputs, shared.policy.adapterBits);
  const zeros = () => new Float32Array(parameters.length);
  const { loss, terms } = await session.step({ parameters, mean: zeros(), square: zeros() }, 1, 0, batch);
  await session.release();

  // The graph that was exposed, and the simulation whose encodings are inputs, with their inner values given out.
  const names = Object.values(blockOutputs);
  const floats = (data: Float32Array, dims: readonly number[]): TensorData => ({
    ...{ type: "float32", dims: [...dims] },
    data: data as Float32Array<ArrayBuffer>,
  });
  const call = recorded.calls.find(({ caseIndex }) => caseIndex === 2)!.inputs;
  const common = {
    ...call,
    [slots.strengthInput]: floats(new Float32Array(encoded.rank).fill(1), [encoded.rank]),
  };
  const factors = (values: ReadonlyMap<string, Float32Array>) =>
    Object.fromEntries(
      slots.slots.flatMap(({ inputA, shapeA, inputB, shapeB }) =>
        [[inputA, shapeA] as const, [inputB, shapeB] as const].map(([name, shape]) => {
          const dims = shape.map((dim) => (dim === "rank" ? encoded.rank : dim));
          return [name, floats(values.get(name) ?? new Float32Array(dims.reduce((a, b) => a * b, 1)), dims)];
        }),
      ),
    );
  const wanted = await run(giveOut(await prepare(), names), { ...common, ...factors(original) });
  const { placement, policy } = shared;
  const simulation = buildSimulation(await prepare(), slots, { placement, ...policy });
  const encodings = simulation.points.map(({ name }) => pointEncoding(shared.points[name]));
  const vector = (pick: (encoding: (typeof encodings)[number]) => number) =>
    floats(Float32Array.from(encodings, pick), [encodings.length]);
  const got = await run(giveOut(simulation.model, names), {
    ...common,
    ...factors(new Map(encoded.values.map(({ name, data }) => [name, data as Float32Array]))),
    [encodingInputs.scale]: vector(({ scale }) => scale[0]),
    [encodingInputs.low]: vector((encoding) => encodingRange(encoding).min),
    [encodingInputs.high]: vector((encoding) => encodingRange(encoding).max),
  });
  let mean = 0;
  for (const name of names) {
    let [error, power] = [0, 0];
    wanted[name].forEach((value, index) => {
      error += (got[name][index] - value) ** 2;
      power += value ** 2;
    });
    mean += error / power / names.length;
  }
  expect(mean).toBeGreaterThan(1e-5);
  // A sum on the other side of a rounding boundary changes a little of what follows.
  expect(Math.abs(terms.features / mean - 1)).toBeLessThan(0.05);
  expect(loss).toBeCloseTo(3 * terms.features, 6);
});

test("without weight the graphs are the same bytes as without blocks", async () => {
  const { slots, shared, encoded, inputs, prepare } = await parts();
  const built = async (more: Partial<StudentOptions>) => {
    const prepared = await prepare();
    const blocks = findFeatureBlocks(prepared, settings().featureBlocks);
    const { training, forward } = await buildStudent(prepared, slots, shared, inputs, {
      ...{ calls: 1, rowsPerCall: 2, rank: encoded.rank, reconstruction: 1, guided: 0.5, denoising: 0.01 },
      ...{ clipNorm: 1, weightDecay: 0, ...more, ...(more.features === 0 ? { blocks } : {}) },
    });
    return { training, bytes: [training.model, forward].map(encodeModel) };
  };
  const [plain, zero] = [await built({}), await built({ features: 0 })];
  expect(zero.training.terms).toEqual([]);
  for (const [index, bytes] of plain.bytes.entries()) expect(Buffer.compare(bytes, zero.bytes[index])).toBe(0);
});

test("training lowers the features' error, the same bytes each time", async () => {
  const terms: number[] = [];
  const distil = (out: string, input: DistillSettingsInput) =>
    distillAdapter({
      ...{ exposed, profile, adapter: "sketch", trajectory, out: join(folder, out), settings: settings(input) },
      onStep: ({ terms: { features } }) => void terms.push(features),
    });
  const alone = { reconstruction: 0, guided: 0, denoising: 0, features: 1, steps: 24, batch: 4 };
  const { curve } = await distil("features", { ...alone, learningRate: 0.3 });
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  expect(mean(curve.losses.slice(-8))).toBeLessThan(0.97 * mean(curve.losses.slice(0, 4)));
  curve.losses.forEach((loss, step) => {
    expect(terms[step]).toBeCloseTo(loss, 8);
  });
  const first = await distil("together", { features: 0.1, segments: 2 });
  const second = await distil("again", { features: 0.1, segments: 2 });
  expect(second.curve).toEqual(first.curve);
});
