import { createHash } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { InputError, type SafetensorsInput } from "@quad-lora/base";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { encodeAdapter, factorsOf } from "../factors/encode-factors.ts";
import { type FactorFile, factorMetadata, readFactorFile } from "../factors/factor-file.ts";
import { otherFactors } from "../factors/other-factors.ts";
import { hashFile } from "../files/hash.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { decibels } from "../metrics/index.ts";
import { readScheduler } from "../model/model-folder.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { DistillSettings } from "../settings/distill.ts";
import type { TrainingCurve } from "../train/checkpoint.ts";
import { LossSession, TrainingSession } from "../train/training-graph.ts";
import { type BatchSource, type TrainingProgress, type TrainingResult, trainingLoop } from "../train/training-loop.ts";
import { type FactorInput, factorInputs, packFactors, unpackFactors } from "./factor-codes.ts";
import { findFeatureBlocks } from "./feature-blocks.ts";
import { FeatureTeacher } from "./feature-teacher.ts";
import { buildStudent, distillNames, type StudentGraph } from "./student-graph.ts";
import { refuseOtherSize, rowsPerCall, type TeacherBatches, teacherBatches } from "./teacher-batches.ts";

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
  onStep?: (progress: TrainingProgress) => void;
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
  const { adapter, settings } = options;
  const profile = await readProfile(options.profile);
  const model = await ExposedModel.open(options.exposed);
  await model.refuse(profile, options.profile);
  const start = await alignedStart(options, model, profile);
  const trajectory = await readTrajectory(options.trajectory);
  const what = "the teacher drew pictures of another size than the profile is for";
  refuseOtherSize(profile, [trajectory], what, options.trajectory);

  const { prepared, blocks, student } = await makeStudent(settings, model, profile, start, trajectory);
  const { timestep, batchInputs, training } = student;
  const batches = teacherBatches(trajectory, {
    ...{ calls: settings.batch, validationPictures: settings.validationPictures, timestep, batchInputs },
    ...(await readScheduler(options.exposed)),
  });
  const teacher =
    settings.features > 0
      ? await FeatureTeacher.open(prepared, model.slots, start.original, blocks, settings.threads)
      : null;
  const source: BatchSource = teacher
    ? async (step, random) => teacher.withFeatures(await batches.source(step, random))
    : batches.source;
  try {
    const files = await filesOf(options, profile, start.file);
    const { adapterBits } = profile.policy;
    const initial = packFactors(start.values, training.layout, start.inputs, adapterBits);
    const { result, secondsPerStep } = await trainStudent(student, { ...batches, source }, initial, files, options);
    const trained = unpackFactors(result.parameters, training.layout, start.inputs, adapterBits);
    const others = otherFactors(model.slotsFile, model.component, start.original, start.rank);
    const metadata = { ...start.original.metadata, ...factorMetadata(start.rank) };
    await writeSafetensors(files.out, [...trained, ...others], metadata);
    if (!options.checkpoints) await removeCheckpoints(options.out, adapter);
    return {
      adapter,
      file: files.out,
      parameters: training.size,
      trainingCalls: batches.trainingCalls,
      resumedFrom: result.resumedFrom,
      sqnrBefore: decibels(result.curve.evaluations[0].value),
      sqnrAfter: decibels(result.best!.value),
      bestStep: result.best!.step,
      secondsPerStep,
      curvePath: files.curve,
      curve: result.curve,
    };
  } finally {
    await teacher?.release();
  }
}

/** Where training starts: the adapter's factors aligned to the profile's grids. */
interface Start {
  /** The adapter's file, and what it holds. */
  file: string;
  original: FactorFile;
  rank: number;
  /** Values on the grids, in the layouts of the graph inputs. */
  values: SafetensorsInput[];
  inputs: FactorInput[];
}

async function alignedStart(options: DistillAdapterOptions, model: ExposedModel, profile: Profile): Promise<Start> {
  const { adapter, adapters } = options;
  const file = adapters ? join(adapters, `${adapter}.safetensors`) : model.factorPath(adapter);
  const original = await readFactorFile(file);
  const { adapterBits, align } = profile.policy;
  const { slots } = model.slots;
  const rank = Math.max(profile.rank, original.rank);
  const factors = factorsOf(original.tensors, slots, original.rank, rank);
  if (factors.size === 0) {
    throw new InputError({ what: "the adapter has no factors for the denoiser", file, fix: "Leave it as it is." });
  }
  const scales = new Map(Object.entries(profile.slots));
  const { values } = encodeAdapter(factors, slots, scales, adapterBits, align);
  return { file, original, rank, values, inputs: factorInputs(slots, scales, new Set(values.map(({ name }) => name))) };
}

async function makeStudent(
  settings: DistillSettings,
  model: ExposedModel,
  profile: Profile,
  { rank, inputs }: Start,
  trajectory: Trajectory,
) {
  const { batch: calls, features, featureBlocks, segments } = settings;
  const { reconstruction, guided, denoising, clipNorm, weightDecay } = settings;
  const perCall = rowsPerCall(trajectory);
  const prepared = await model.prepare({ ...profile.shape, batch: calls * perCall });
  const blocks = features > 0 ? findFeatureBlocks(prepared, featureBlocks) : [];
  const student = await buildStudent(prepared, model.slots, profile, inputs, {
    ...{ calls, rowsPerCall: perCall, rank, features, blocks },
    ...{ reconstruction, guided, denoising, clipNorm, weightDecay },
    ...(segments > 1 ? { segments } : {}),
  });
  return { prepared, blocks, student };
}

interface RunFiles {
  out: string;
  curve: string;
  checkpoint: { path: string; identity: string };
}

async function filesOf(options: DistillAdapterOptions, profile: Profile, adapterFile: string): Promise<RunFiles> {
  const { adapter, out, settings, trajectory } = options;
  const identity = createHash("sha256")
    .update(JSON.stringify([settings, profile, await hashFile(adapterFile), await hashFile(trajectory)]))
    .digest("hex");
  // Runs of other settings have checkpoints of other names: they are not a reason to refuse this one.
  const path = join(options.checkpoints ?? out, `${adapter}-${identity.slice(0, 16)}.checkpoint`);
  return {
    out: join(out, `${adapter}.safetensors`),
    curve: join(out, `${adapter}.loss.json`),
    checkpoint: { path, identity },
  };
}

async function trainStudent(
  student: StudentGraph,
  { source, validation }: Pick<TeacherBatches, "source" | "validation">,
  initial: Float32Array,
  files: RunFiles,
  { settings, signal, onStep }: DistillAdapterOptions,
): Promise<{ result: TrainingResult; secondsPerStep: number }> {
  const { steps, learningRate, warmup, averageDecay, seed, validateEvery, checkpointEvery, threads } = settings;
  const session = await TrainingSession.open(student.training, distillNames.parameters, threads);
  const measuring = await LossSession.open(student.forward, distillNames.parameters, threads);
  try {
    const started = performance.now();
    const evaluate = (parameters: Float32Array) => measuring.meanLoss(parameters, validation);
    const result = await trainingLoop(session, initial, source, {
      ...{ steps, learningRate, warmup, averageDecay, seed, curvePath: files.curve },
      checkpoint: { ...files.checkpoint, every: checkpointEvery },
      evaluation: { every: validateEvery, atStart: true, evaluate },
      signal,
      onStep,
    });
    const seconds = (performance.now() - started) / 1000;
    return { result, secondsPerStep: seconds / Math.max(1, steps - result.resumedFrom) };
  } finally {
    await session.release();
    await measuring.release();
  }
}

async function removeCheckpoints(folder: string, adapter: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    if (name.startsWith(`${adapter}-`) && /^-[0-9a-f]{16}\.checkpoint$/.test(name.slice(adapter.length))) {
      await rm(join(folder, name), { force: true });
    }
  }
}
