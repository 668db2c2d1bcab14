import { InputError } from "@quad-lora/base";
import { elementCount } from "@quad-lora/onnx";
import type { SlotsFile, TensorData } from "@quad-lora/runtime";
import { type TeacherBatchOptions, teacherBatches } from "../distill/teacher-batches.ts";
import type { EncodedAdapter } from "../factors/encode-factors.ts";
import { factorDims, slotInputs } from "../factors/slot-layout.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { BatchSource } from "../train/training-loop.ts";

export interface TaskBatches {
  /** Every batch holds calls of one task, drawn at random, with that task's factors. */
  source: BatchSource;
  /** Batches of the calls kept out of training, by task. */
  validation: Map<string, Readonly<Record<string, TensorData>>[]>;
  trainingCalls: number;
}

/**
 * Batches of all tasks' recorded calls.
 * @param factors - the tasks' values for the adapter inputs, see {@link factorTensors}
 * @param validationShare - of each task's pictures, at least one and the last ones
 * @throws InputError where a task has a single picture
 */
export function taskBatches(
  trajectories: readonly Trajectory[],
  factors: ReadonlyMap<string, Readonly<Record<string, TensorData>>>,
  { validationShare, ...options }: Omit<TeacherBatchOptions, "validationPictures"> & { validationShare: number },
): TaskBatches {
  const tasks = trajectories.map((trajectory) => {
    const { task, calls } = trajectory;
    const pictures = 1 + Math.max(...calls.map(({ caseIndex }) => caseIndex));
    if (pictures < 2) {
      throw new InputError({
        what: "training ranges needs two calibration pictures of every task, one of them to validate on",
        where: `task "${task}"`,
        got: "1",
        fix: "Add one to the task's calibration cases.",
      });
    }
    const held = Math.min(pictures - 1, Math.max(1, Math.round(validationShare * pictures)));
    const batches = teacherBatches(trajectory, { ...options, validationPictures: held });
    return { task, batches, adapter: factors.get(task)! };
  });
  return {
    source: async (step, random) => {
      const { batches, adapter } = tasks[random.integer(tasks.length)];
      return { ...(await batches.source(step, random)), ...adapter };
    },
    validation: new Map(
      tasks.map(({ task, batches, adapter }) => [
        task,
        batches.validation.map((tensors) => ({ ...tensors, ...adapter })),
      ]),
    ),
    trainingCalls: tasks.reduce((sum, { batches }) => sum + batches.trainingCalls, 0),
  };
}

/**
 * The values of all adapter inputs of a graph of one rank: zeros where the adapter, or the base, has none.
 * @param values - an encoded adapter's values, of that rank; null for the base
 */
export function factorTensors(
  { slots }: SlotsFile["components"][string],
  rank: number,
  values: EncodedAdapter["values"] | null,
): Record<string, TensorData> {
  const known = new Map(values?.map(({ name, data }) => [name, data as Float32Array]));
  const tensors: Record<string, TensorData> = {};
  for (const [name, shape] of slotInputs(slots)) {
    const dims = factorDims(shape, rank);
    const data = known.get(name) ?? new Float32Array(elementCount(dims));
    tensors[name] = { type: "float32", dims, data };
  }
  return tensors;
}
