import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import type { TensorData } from "@quad-lora/runtime";
import { refuseOtherSize, rowsPerCall } from "../distill/teacher-batches.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { encodeAdapter } from "../factors/encode-factors.ts";
import { hashFile } from "../files/hash.ts";
import { decibels } from "../metrics/index.ts";
import { mean } from "../metrics/mean.ts";
import { alignBatches } from "../model/denoiser-calls.ts";
import { readScheduler } from "../model/model-folder.ts";
import { type Profile, readProfile, writeProfile } from "../records/profile.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { TuneSettings } from "../settings/tune.ts";
import type { TrainingCurve } from "../train/checkpoint.ts";
import { LossSession, TrainingSession } from "../train/training-graph.ts";
import { trainingLoop } from "../train/training-loop.ts";
import type { StageOptions } from "../work/progress.ts";
import { buildRangeGraph, type RangeGraph, rangeParameters } from "./range-graph.ts";
import { withFactors } from "./range-groups.ts";
import { factorTensors, type TaskBatches, taskBatches } from "./task-batches.ts";

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
  const { exposed, settings } = options;
  if (settings.steps < 1) {
    throw new InputError({ what: "there is nothing to do in 0 steps", where: "tune.steps", expected: "1 or more" });
  }
  const profile = await readProfile(options.profile);
  const model = await ExposedModel.open(exposed);
  await model.refuse(profile, options.profile);
  const trajectories = alignBatches(await Promise.all(options.trajectories.map(readTrajectory)));
  const what = "the calibration pictures have another size than the profile is for";
  refuseOtherSize(profile, trajectories, what, options.profile);

  const { rank, tensors, hashes } = await encodedFactors(model, profile, trajectories);
  const graph = await makeGraph(settings, model, profile, rank, rowsPerCall(trajectories[0]));
  const { timestep, batchInputs, groups } = graph;
  const batches = taskBatches(trajectories, tensors, {
    ...{ calls: settings.batch, validationShare: settings.validationShare, timestep, batchInputs },
    ...(await readScheduler(exposed)),
  });
  const files = await filesOf(options, profile, hashes);
  const { result, tasks, secondsPerStep } = await trainRanges(graph, batches, files, options);
  const tuned: Profile = {
    ...withFactors(profile, groups, result.parameters),
    tuned: { steps: settings.steps, bestStep: result.best!.step, tasks },
  };
  await writeProfile(options.out, tuned);
  await rm(files.checkpoint.path, { force: true });
  return {
    profile: tuned,
    file: options.out,
    parameters: groups.length,
    trainingCalls: batches.trainingCalls,
    resumedFrom: result.resumedFrom,
    secondsPerStep,
    curvePath: files.curve,
    curve: result.curve,
  };
}

async function makeGraph(
  { batch: calls, reconstruction, guided, clipNorm, segments }: TuneSettings,
  model: ExposedModel,
  profile: Profile,
  rank: number,
  perCall: number,
): Promise<RangeGraph> {
  const prepared = await model.prepare({ ...profile.shape, batch: calls * perCall });
  return buildRangeGraph(prepared, model.slots, profile, {
    ...{ calls, rank, rowsPerCall: perCall, weightDecay: 0, reconstruction, guided, clipNorm },
    ...(segments > 1 ? { segments } : {}),
  });
}

interface RunFiles {
  curve: string;
  checkpoint: { path: string; identity: string };
}

/** Files beside the profile to write. @param hashes - of the adapters */
async function filesOf(
  { out, settings, trajectories, checkpoints }: TuneProfileOptions,
  profile: Profile,
  hashes: Readonly<Record<string, string>>,
): Promise<RunFiles> {
  const name = basename(out).replace(/\.json$/, "");
  const identity = createHash("sha256")
    .update(JSON.stringify([settings, profile, hashes, await Promise.all(trajectories.map(hashFile))]))
    .digest("hex");
  const path = join(checkpoints ?? dirname(out), `${name}-${identity.slice(0, 16)}.checkpoint`);
  return { curve: join(dirname(out), `${name}.loss.json`), checkpoint: { path, identity } };
}

/** @returns also every task's signal to noise before and after, on what was kept out of training */
async function trainRanges(
  { training, forward, groups }: RangeGraph,
  { source, validation }: TaskBatches,
  files: RunFiles,
  { settings, signal, onProgress }: TuneProfileOptions,
) {
  const { steps, learningRate, warmup, averageDecay, seed, validateEvery, checkpointEvery, threads } = settings;
  const session = await TrainingSession.open(training, rangeParameters, threads);
  const measuring = await LossSession.open(forward, rangeParameters, threads);
  try {
    const measure = async (parameters: Float32Array) => {
      const noise = new Map<string, number>();
      for (const [task, held] of validation) noise.set(task, await measuring.meanLoss(parameters, held));
      return noise;
    };
    const initial = new Float32Array(groups.length);
    const started = performance.now();
    const result = await trainingLoop(session, initial, source, {
      ...{ steps, learningRate, warmup, averageDecay, seed, curvePath: files.curve },
      checkpoint: { ...files.checkpoint, every: checkpointEvery },
      evaluation: {
        ...{ every: validateEvery, atStart: true },
        evaluate: async (parameters) => mean([...(await measure(parameters)).values()]),
      },
      signal,
      onStep: ({ step, loss }) => onProgress?.("training ranges", step, steps, `${decibels(loss).toFixed(1)} dB`),
    });
    const seconds = (performance.now() - started) / 1000;
    const [before, after] = [await measure(initial), await measure(result.parameters)];
    const tasks = [...before].map(([task, noise]) => [
      task,
      { sqnrBefore: decibels(noise), sqnrAfter: decibels(after.get(task)!) },
    ]);
    const secondsPerStep = seconds / Math.max(1, steps - result.resumedFrom);
    return { result, tasks: Object.fromEntries(tasks) as NonNullable<Profile["tuned"]>["tasks"], secondsPerStep };
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
