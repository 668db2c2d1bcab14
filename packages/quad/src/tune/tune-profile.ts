import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import type { TensorData } from "@quad-lora/runtime";
import { alignBatches } from "../calibrate/calibrate.ts";
import { refuseOtherSize, rowsPerCall } from "../distill/teacher-batches.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { encodeAdapter } from "../factors/encode-factors.ts";
import { hashFile } from "../files/hash.ts";
import { decibels } from "../metrics/index.ts";
import { mean } from "../metrics/mean.ts";
import { readScheduler } from "../model/model-folder.ts";
import { type Profile, readProfile, writeProfile } from "../records/profile.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { TuneSettings } from "../settings/tune.ts";
import type { TrainingCurve } from "../train/checkpoint.ts";
import { LossSession, TrainingSession } from "../train/training-graph.ts";
import { trainingLoop } from "../train/training-loop.ts";
import type { StageOptions } from "../work/progress.ts";
import { buildRangeGraph, rangeParameters } from "./range-graph.ts";
import { withFactors } from "./range-groups.ts";
import { factorTensors, taskBatches } from "./task-batches.ts";

/** What {@link tuneProfile} reads and writes, and how it trains. */
export interface TuneProfileOptions extends StageOptions {
  /** Folder written by `expose`. */
  exposed: string;
  /** Profile file. */
  profile: string;
  /** Trajectory files of all tasks that share the profile, the base among them if it counts. */
  trajectories: readonly string[];
  /** Profile to write, `NAME.json`; the loss curve goes beside it, as `NAME.loss.json`. */
  out: string;
  settings: TuneSettings;
  /** Folder for the checkpoint, which is removed when the profile is written; default: that of `out`. */
  checkpoints?: string;
}

/** What training the ranges gained, and where its files are. */
export interface TuneProfileResult {
  profile: Profile;
  file: string;
  /** Scales that were trained: points of one value and encoding share one. */
  parameters: number;
  trainingCalls: number;
  resumedFrom: number;
  secondsPerStep: number;
  curvePath: string;
  curve: TrainingCurve;
}

/**
 * Trains the scales of a profile's 8-bit points, so that the quantized denoiser predicts what full precision predicts over
 * the recorded calls of all tasks, each with its own encoded adapter. Zero points, widths, 16-bit points, weights and
 * adapters stay. The scales with the least mean error over the tasks on the pictures kept out of training are written, those
 * of the given profile among the candidates. Goes on from the checkpoint of an interrupted run of the same settings and data.
 * Same input, same bytes.
 * @throws InputError for files that do not belong together, tasks of a single picture, and a profile without 8-bit points;
 * the signal's reason on abort, after a checkpoint was written
 */
export async function tuneProfile(options: TuneProfileOptions): Promise<TuneProfileResult> {
  const { exposed, settings, signal } = options;
  if (settings.steps < 1) {
    throw new InputError({ what: "there is nothing to do in 0 steps", where: "tune.steps", expected: "1 or more" });
  }
  const profile = await readProfile(options.profile);
  const model = await ExposedModel.open(exposed);
  await model.refuse(profile, options.profile);
  const { slots } = model;
  const trajectories = alignBatches(await Promise.all(options.trajectories.map(readTrajectory)));
  const what = "the calibration pictures have another size than the profile is for";
  refuseOtherSize(profile, trajectories, what, options.profile);
  const { batch: calls, threads, validationShare } = settings;
  const perCall = rowsPerCall(trajectories[0]);
  const { rank, tensors, hashes } = await encodedFactors(model, profile, trajectories);
  const { height, width, tokens } = profile.shape;
  const shape = { batch: calls * perCall, height, width, tokens };
  const prepared = await model.prepare(shape);
  const { training, forward, groups, timestep, batchInputs } = await buildRangeGraph(prepared, slots, profile, {
    ...{ calls, rank, rowsPerCall: perCall, weightDecay: 0 },
    ...{ reconstruction: settings.reconstruction, guided: settings.guided, clipNorm: settings.clipNorm },
    ...(settings.segments > 1 ? { segments: settings.segments } : {}),
  });
  const { scheduler, schedulerFile } = await readScheduler(exposed);
  const batches = taskBatches(trajectories, tensors, {
    ...{ calls, validationShare, scheduler, schedulerFile, timestep, batchInputs },
  });

  const { out } = options;
  const name = basename(out).replace(/\.json$/, "");
  const curvePath = join(dirname(out), `${name}.loss.json`);
  const identity = createHash("sha256")
    .update(JSON.stringify([settings, profile, hashes, await Promise.all(options.trajectories.map(hashFile))]))
    .digest("hex");
  const path = join(options.checkpoints ?? dirname(out), `${name}-${identity.slice(0, 16)}.checkpoint`);
  const session = await TrainingSession.open(training, rangeParameters, threads);
  const measuring = await LossSession.open(forward, rangeParameters, threads);
  try {
    const initial = new Float32Array(groups.length);
    const measure = async (parameters: Float32Array) => {
      const noise = new Map<string, number>();
      for (const [task, held] of batches.validation) noise.set(task, await measuring.meanLoss(parameters, held));
      return noise;
    };
    const started = performance.now();
    const { steps, learningRate, warmup, averageDecay, seed, validateEvery, checkpointEvery } = settings;
    const result = await trainingLoop(session, initial, batches.source, {
      ...{ steps, learningRate, warmup, averageDecay, seed, curvePath },
      checkpoint: { path, every: checkpointEvery, identity },
      evaluation: {
        ...{ every: validateEvery, atStart: true },
        evaluate: async (parameters) => mean([...(await measure(parameters)).values()]),
      },
      signal,
      onStep: ({ step, loss }) =>
        options.onProgress?.("training ranges", step, steps, `${decibels(loss).toFixed(1)} dB`),
    });
    const seconds = (performance.now() - started) / 1000;
    const before = await measure(initial);
    const after = await measure(result.parameters);
    const tasks = [...before].map(([task, noise]) => [
      task,
      { sqnrBefore: decibels(noise), sqnrAfter: decibels(after.get(task)!) },
    ]);
    const tuned: Profile = {
      ...withFactors(profile, groups, result.parameters),
      tuned: { steps, bestStep: result.best!.step, tasks: Object.fromEntries(tasks) },
    };
    await writeProfile(out, tuned);
    await rm(path, { force: true });
    return {
      profile: tuned,
      file: out,
      parameters: groups.length,
      trainingCalls: batches.trainingCalls,
      resumedFrom: result.resumedFrom,
      secondsPerStep: seconds / Math.max(1, steps - result.resumedFrom),
      curvePath,
      curve: result.curve,
    };
  } finally {
    await session.release();
    await measuring.release();
  }
}

/** Every task's values for the adapter inputs, on the profile's grids and of one rank, and hashes of where they are from. */
async function encodedFactors(model: ExposedModel, profile: Profile, trajectories: readonly Trajectory[]) {
  const { slots } = model;
  const names = trajectories.map(({ task }) => task);
  const { factors, rank } = await model.factors(names, profile.rank);
  const scales = new Map(Object.entries(profile.slots));
  const { adapterBits, align } = profile.policy;
  const tensors = new Map<string, Record<string, TensorData>>();
  const hashes: Record<string, string> = {};
  for (const name of names) {
    const given = factors.get(name);
    const values = given ? encodeAdapter(given, slots.slots, scales, adapterBits, align).values : null;
    tensors.set(name, factorTensors(slots, rank, values));
    if (given) hashes[name] = await hashFile(model.factorPath(name));
  }
  return { rank, tensors, hashes };
}
