import { createHash } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { encodeAdapter, factorsOf } from "../factors/encode-factors.ts";
import { factorMetadata, readFactorFile } from "../factors/factor-file.ts";
import { otherFactors } from "../factors/other-factors.ts";
import { hashFile } from "../files/hash.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { decibels } from "../metrics/index.ts";
import { describeShape, isSameSize } from "../model/denoiser.ts";
import { shapeOf } from "../model/denoiser-calls.ts";
import { readScheduler } from "../model/model-folder.ts";
import { readProfile } from "../records/profile.ts";
import { readTrajectory } from "../records/trajectory.ts";
import type { DistillSettings } from "../settings/distill.ts";
import type { TrainingCurve } from "../train/checkpoint.ts";
import { LossSession, TrainingSession } from "../train/training-graph.ts";
import { type BatchSource, type TrainingProgress, trainingLoop } from "../train/training-loop.ts";
import { factorInputs, packFactors, unpackFactors } from "./factor-codes.ts";
import { findFeatureBlocks } from "./feature-blocks.ts";
import { FeatureTeacher } from "./feature-teacher.ts";
import { buildStudent, distillNames } from "./student-graph.ts";
import { rowsPerCall, teacherBatches } from "./teacher-batches.ts";

/** What {@link distillAdapter} reads and writes, and how it trains. */
export interface DistillAdapterOptions {
  /** Folder written by `expose`. */
  exposed: string;
  /** Profile file. */
  profile: string;
  adapter: string;
  /** The teacher's trajectory, see `recordTeacher`. */
  trajectory: string;
  /** Folder of adapter files to write `ADAPTER.safetensors` into, and `ADAPTER.loss.json` beside it. */
  out: string;
  /** Folder of the factors to start from; default: those of the exposed folder. */
  adapters?: string;
  settings: DistillSettings;
  /**
   * Folder for the checkpoint. It stays there when the adapter is done, so that a run over several adapters can go on; whoever
   * names the folder removes it. Default: `out`, and gone when done.
   */
  checkpoints?: string;
  signal?: AbortSignal;
  onProgress?: (progress: TrainingProgress) => void;
}

/** What a distillation gained, and where its files are. */
export interface DistillAdapterResult {
  adapter: string;
  file: string;
  parameters: number;
  trainingCalls: number;
  resumedFrom: number;
  /** Signal to noise of the predictions on the pictures kept out of training, dB: aligned only, and with the factors written. */
  sqnrBefore: number;
  sqnrAfter: number;
  bestStep: number;
  secondsPerStep: number;
  curvePath: string;
  curve: TrainingCurve;
}

/**
 * Tunes an adapter's factors so that the quantized denoiser on the frozen profile says what the full-precision one says (the
 * method's distillation). Starts from the factors aligned to the profile's grids, and writes values on those grids:
 * encoding them gives the codes that were trained. Goes on from the checkpoint of an interrupted run of the same settings and
 * data. Same input, same bytes.
 * @throws InputError for files that do not belong together; the signal's reason on abort, after a checkpoint was written
 */
export async function distillAdapter(options: DistillAdapterOptions): Promise<DistillAdapterResult> {
  const { exposed, adapter, settings, signal } = options;
  const { threads } = settings;
  const profile = await readProfile(options.profile);
  const model = await ExposedModel.open(exposed);
  const { component, slots, slotsFile } = model;
  await model.refuse(profile, options.profile);
  const adapterFile = join(options.adapters ?? join(exposed, "adapters"), `${adapter}.safetensors`);
  const original = await readFactorFile(adapterFile);
  const { adapterBits, align } = profile.policy;
  const scales = new Map(Object.entries(profile.slots));
  const rank = Math.max(profile.rank, original.rank);
  const factors = factorsOf(original.tensors, slots.slots, original.rank, rank);
  if (factors.size === 0) {
    throw new InputError({
      what: "the adapter has no factors for the denoiser",
      file: adapterFile,
      fix: "Leave it as it is.",
    });
  }
  const start = encodeAdapter(factors, slots.slots, scales, adapterBits, align);
  const inputs = factorInputs(slots.slots, scales, new Set(start.values.map(({ name }) => name)));

  const trajectory = await readTrajectory(options.trajectory);
  const calls = settings.batch;
  const perCall = rowsPerCall(trajectory);
  const drawn = shapeOf([trajectory]);
  if (!isSameSize(drawn, profile.shape)) {
    throw new InputError({
      what: "the teacher drew pictures of another size than the profile is for",
      file: options.trajectory,
      expected: describeShape(profile.shape),
      got: describeShape(drawn),
    });
  }
  const prepared = await model.prepare({ ...profile.shape, batch: calls * perCall });
  const { features, featureBlocks } = settings;
  const blocks = features > 0 ? findFeatureBlocks(prepared, featureBlocks) : [];
  const student = await buildStudent(prepared, slots, profile, inputs, {
    calls,
    rowsPerCall: perCall,
    rank,
    reconstruction: settings.reconstruction,
    guided: settings.guided,
    denoising: settings.denoising,
    ...{ features, blocks },
    clipNorm: settings.clipNorm,
    weightDecay: settings.weightDecay,
    ...(settings.segments > 1 ? { segments: settings.segments } : {}),
  });
  const { scheduler, schedulerFile } = await readScheduler(exposed);
  const { timestep, batchInputs } = student;
  const { validationPictures } = settings;
  const batches = teacherBatches(trajectory, {
    ...{ calls, validationPictures, scheduler, schedulerFile, timestep, batchInputs },
  });
  const { layout } = student.training;
  const initial = packFactors(start.values, layout, inputs, adapterBits);

  const file = join(options.out, `${adapter}.safetensors`);
  const curvePath = join(options.out, `${adapter}.loss.json`);
  const { steps, learningRate, warmup, averageDecay, seed, validateEvery, checkpointEvery } = settings;
  const identity = createHash("sha256")
    .update(JSON.stringify([settings, profile, await hashFile(adapterFile), await hashFile(options.trajectory)]))
    .digest("hex");
  // Runs of other settings have checkpoints of other names: they are no reason to refuse this one.
  const checkpoints = options.checkpoints ?? options.out;
  const checkpoint = join(checkpoints, `${adapter}-${identity.slice(0, 16)}.checkpoint`);
  const session = await TrainingSession.open(student.training, distillNames.parameters, threads);
  const measuring = await LossSession.open(student.forward, distillNames.parameters, threads);
  const teacher = features > 0 ? await FeatureTeacher.open(prepared, slots, original, blocks, threads) : null;
  const source: BatchSource = teacher
    ? async (step, random) => teacher.withFeatures(await batches.source(step, random))
    : batches.source;
  try {
    const evaluate = async (parameters: Float32Array) => {
      let sum = 0;
      for (const tensors of batches.validation) sum += await measuring.loss(parameters, tensors);
      return sum / batches.validation.length;
    };
    const started = performance.now();
    const result = await trainingLoop(session, initial, source, {
      ...{ steps, learningRate, warmup, averageDecay, seed, curvePath },
      checkpoint: { path: checkpoint, every: checkpointEvery, identity },
      evaluation: { every: validateEvery, atStart: true, evaluate },
      signal,
      onProgress: options.onProgress,
    });
    const seconds = (performance.now() - started) / 1000;
    const trained = unpackFactors(result.parameters, layout, inputs, adapterBits);
    const others = otherFactors(slotsFile, component, original, rank);
    await writeSafetensors(file, [...trained, ...others], { ...original.metadata, ...factorMetadata(rank) });
    if (!options.checkpoints) await removeCheckpoints(checkpoints, adapter);
    const [before] = result.curve.evaluations;
    return {
      adapter,
      file,
      parameters: student.training.size,
      trainingCalls: batches.trainingCalls,
      resumedFrom: result.resumedFrom,
      sqnrBefore: decibels(before.value),
      sqnrAfter: decibels(result.best!.value),
      bestStep: result.best!.step,
      secondsPerStep: seconds / Math.max(1, steps - result.resumedFrom),
      curvePath,
      curve: result.curve,
    };
  } finally {
    await session.release();
    await measuring.release();
    await teacher?.release();
  }
}

async function removeCheckpoints(folder: string, adapter: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    if (name.startsWith(`${adapter}-`) && /^-[0-9a-f]{16}\.checkpoint$/.test(name.slice(adapter.length))) {
      await rm(join(folder, name), { force: true });
    }
  }
}
