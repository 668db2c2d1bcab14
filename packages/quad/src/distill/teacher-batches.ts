import { InputError } from "@quad-lora/base";
import { elementCount } from "@quad-lora/onnx";
import {
  alphaSigma,
  parseSchedulerConfig,
  type SeededRandom,
  type TensorData,
  targetWeights,
} from "@quad-lora/runtime";
import { describeShape, isSameSize, sampleInput, timestepInput } from "../model/denoiser.ts";
import { floatValues, hasRows, inFloat32, joinRows, shapeOf } from "../model/denoiser-calls.ts";
import { readTimesteps, type TimestepPort, timestepTensor } from "../model/timesteps.ts";
import type { Profile } from "../records/profile.ts";
import type { ModelCall, Trajectory } from "../records/trajectory.ts";
import type { BatchSource } from "../train/training-loop.ts";
import { distillNames, type StudentGraph } from "./student-graph.ts";

export interface TeacherBatchOptions {
  /** Calls per batch. */
  calls: number;
  /** Cases at the end that validation keeps to itself. */
  validationPictures: number;
  /** Content of `scheduler_config.json`: alphas, and what the network predicts. */
  scheduler: unknown;
  schedulerFile?: string;
  timestep: StudentGraph["timestep"];
  batchInputs: StudentGraph["batchInputs"];
}

export interface TeacherBatches {
  source: BatchSource;
  /** Fixed batches over the calls kept out of training; the last is filled up with its first calls. */
  validation: Readonly<Record<string, TensorData>>[];
  trainingCalls: number;
}

interface Example {
  call: ModelCall;
  /** By which the squared error of a row is multiplied. */
  rowWeight: number;
  callWeight: number;
  guidance: Float32Array;
  /** What the denoising objective asks for, `[rows, channels, height, width]`. */
  target: Float32Array;
}

/** Rows that the teacher's calls have. */
export function rowsPerCall({ task, calls }: Trajectory): number {
  const rows = new Set(calls.map(({ output }) => output.dims[0]));
  if (rows.size === 1) return [...rows][0];
  throw new InputError({
    what: "the teacher's calls have different numbers of rows",
    where: `task "${task}"`,
    fix: "Draw all of a task's pictures with guidance, or none.",
  });
}

/**
 * @param what - what is wrong with calls of another size
 * @param file - for the message
 * @throws InputError where recorded calls have another size than a profile is for
 */
export function refuseOtherSize(
  { shape }: Profile,
  trajectories: readonly Trajectory[],
  what: string,
  file: string,
): void {
  const recorded = shapeOf(trajectories);
  if (isSameSize(recorded, shape)) return;
  throw new InputError({ what, file, expected: describeShape(shape), got: describeShape(recorded) });
}

/** Batches of the teacher's recorded calls. Errors of every time step are measured by the size of the teacher's predictions there. */
export function teacherBatches(trajectory: Trajectory, options: TeacherBatchOptions): TeacherBatches {
  const { calls, timestep } = options;
  const examples = makeExamples(trajectory, options);
  const pictures = 1 + Math.max(...trajectory.calls.map(({ caseIndex }) => caseIndex));
  const firstHeld = pictures - options.validationPictures;
  if (firstHeld < 1) {
    throw new InputError({
      what: "validation leaves no picture to train on",
      where: `task "${trajectory.task}"`,
      expected: `more than ${options.validationPictures} pictures`,
      got: String(pictures),
    });
  }
  const training = examples.filter(({ call }) => call.caseIndex < firstHeld);
  const held = examples.filter(({ call }) => call.caseIndex >= firstHeld);
  const fill = batchFiller(examples[0], options);
  // A graph that takes one time step for all rows gets calls of one time step.
  const rows = calls * examples[0].call.output.dims[0];
  const pools = takesTimePerRow(timestep, rows) ? [training] : byTimestep(training);
  const validation = (pools.length === 1 ? [held] : byTimestep(held)).flatMap((pool) =>
    Array.from({ length: Math.ceil(pool.length / calls) }, (_, index) =>
      fill(Array.from({ length: calls }, (_, position) => pool[(index * calls + position) % pool.length])),
    ),
  );
  return {
    source: (_step, random) => {
      const pool = pools[pools.length === 1 ? 0 : random.integer(pools.length)];
      return fill(draw(pool, calls, random));
    },
    validation,
    trainingCalls: training.length,
  };
}

function byTimestep(examples: readonly Example[]): Example[][] {
  const groups = new Map<number, Example[]>();
  for (const example of examples) {
    const time = timeOf(example.call);
    groups.set(time, [...(groups.get(time) ?? []), example]);
  }
  return [...groups.values()];
}

/** Different ones as long as there are any. */
function draw(pool: readonly Example[], count: number, random: SeededRandom): Example[] {
  const left = [...pool];
  return Array.from({ length: count }, () => {
    if (left.length === 0) left.push(...pool);
    return left.splice(random.integer(left.length), 1)[0];
  });
}

function timeOf({ inputs }: ModelCall): number {
  const times = inputs[timestepInput];
  return times ? readTimesteps(times)[0] : 0;
}

function takesTimePerRow(timestep: TimestepPort | null, rows: number): boolean {
  return timestep?.dims.length === 1 && timestep.dims[0] === rows;
}

function makeExamples({ task, calls, results }: Trajectory, options: TeacherBatchOptions): Example[] {
  const { prediction_type: predicts } = parseSchedulerConfig(options.scheduler, options.schedulerFile);
  const levels = alphaSigma(options.scheduler, options.schedulerFile ? { file: options.schedulerFile } : {});
  if (!results) {
    throw new InputError({
      what: "the trajectory holds no final latents",
      where: `task "${task}"`,
      fix: "Record it again with this version.",
    });
  }
  const steps = new Map<number, { row: number; guided: number; count: number }>();
  const examples = calls.map((call): Example => {
    const { output, inputs } = call;
    const [rows] = output.dims;
    const predictions = floatValues(output);
    const { guidance, latents } = results[call.caseIndex];
    const coefficients = rows === 2 ? Float32Array.of(1 - guidance, guidance) : new Float32Array(rows).fill(1);
    const rowSize = predictions.length / rows;
    const sums = steps.get(call.step) ?? { row: 0, guided: 0, count: 0 };
    steps.set(call.step, sums);
    sums.count++;
    for (let i = 0; i < rowSize; i++) {
      let combined = 0;
      for (let row = 0; row < rows; row++) {
        const value = predictions[row * rowSize + i];
        sums.row += value ** 2 / (rows * rowSize);
        combined += coefficients[row] * value;
      }
      sums.guided += combined ** 2 / rowSize;
    }
    const sample = floatValues(inputs[sampleInput(Object.keys(inputs))]);
    const sampleRow = sample.length / rows;
    const { alpha, sigma } = levels(timeOf(call));
    const weights = targetWeights(predicts, alpha, sigma);
    const target = new Float32Array(predictions.length);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < rowSize; i++) {
        // x_t = alpha x_0 + sigma noise; latents come first in the sample, conditioning behind them.
        const noise = (sample[row * sampleRow + i] - alpha * latents[i]) / sigma;
        target[row * rowSize + i] = weights.original * latents[i] + weights.noise * noise;
      }
    }
    return { call, rowWeight: 0, callWeight: 0, guidance: coefficients, target };
  });
  for (const example of examples) {
    const { row, guided, count } = steps.get(example.call.step)!;
    example.rowWeight = count / Math.max(row, 1e-30);
    example.callWeight = count / Math.max(guided, 1e-30);
  }
  return examples;
}

/** Joins calls along the rows. */
function batchFiller({ call, guidance }: Example, { calls, timestep, batchInputs }: TeacherBatchOptions) {
  const [rows] = call.output.dims;
  const perRow = takesTimePerRow(timestep, calls * rows);
  const joined =
    (dims: readonly number[], pick: (example: Example) => Float32Array) => (examples: readonly Example[]) => {
      const size = elementCount(dims);
      const data = new Float32Array(calls * size);
      examples.forEach((example, index) => {
        data.set(pick(example), index * size);
      });
      return { type: "float32" as const, dims: [calls * dims[0], ...dims.slice(1)], data };
    };
  const floats = new Map<string, ReturnType<typeof joined>>();
  floats.set(
    distillNames.teacher,
    joined(call.output.dims, (example) => floatValues(example.call.output)),
  );
  floats.set(
    distillNames.denoising,
    joined(call.output.dims, ({ target }) => target),
  );
  floats.set(
    distillNames.rowWeights,
    joined([rows], ({ rowWeight }) => new Float32Array(rows).fill(rowWeight)),
  );
  floats.set(
    distillNames.guidance,
    joined([1, guidance.length], (example) => example.guidance),
  );
  floats.set(
    distillNames.callWeights,
    joined([1], ({ callWeight }) => Float32Array.of(callWeight)),
  );
  return (examples: readonly Example[]): Readonly<Record<string, TensorData>> => {
    const batch: Record<string, TensorData> = {};
    for (const [name, join] of floats) if (batchInputs.has(name)) batch[name] = join(examples);
    const times = examples.flatMap(({ call }) => new Array<number>(rows).fill(timeOf(call)));
    for (const [name, tensor] of Object.entries(call.inputs)) {
      if (!batchInputs.has(name) || name === timestepInput) continue;
      // What all rows share, positions say, is the same in every call.
      const tensors = examples.map((example) => inFloat32(example.call.inputs[name]));
      batch[name] = hasRows(name, tensor, rows) ? joinRows(tensors) : tensors[0];
    }
    if (timestep && batchInputs.has(timestepInput)) {
      batch[timestepInput] = timestepTensor(timestep, perRow ? times : [times[0]]);
    }
    return batch;
  };
}
