import { InputError } from "@quad-lora/base";
import { z } from "zod";
import { parseJsonFile } from "../files/json.ts";
import { openSafetensors, writeSafetensors } from "../files/safetensors.ts";

/** What calibration saw of every value, per task and group of time steps. */
export interface Observations {
  /** Names of the observed values. */
  names: string[];
  stepGroups: number;
  bins: number;
  /** Common edges of all tasks' histograms, `[values]`. */
  low: Float32Array;
  high: Float32Array;
  tasks: TaskObservations[];
}

/** Ranges and histograms of one task: per group of steps and observed value. */
export interface TaskObservations {
  task: string;
  /** `[groups, values]` */
  minima: Float32Array;
  /** `[groups, values]` */
  maxima: Float32Array;
  /** `[groups, values, bins]` */
  counts: Float64Array;
}

const metadataSchema = z.strictObject({
  format: z.literal("quad-observations"),
  version: z.literal(1),
  names: z.array(z.string()),
  stepGroups: z.int().positive(),
  bins: z.int().positive(),
  tasks: z.array(z.string()),
});

/** One safetensors file; names and sizes stand in its metadata. */
export async function writeObservations(path: string, observations: Observations): Promise<void> {
  const { names, stepGroups, bins, low, high, tasks } = observations;
  const metadata = {
    format: "quad-observations",
    version: 1,
    names,
    stepGroups,
    bins,
    tasks: tasks.map(({ task }) => task),
  };
  const shape = [stepGroups, names.length];
  await writeSafetensors(
    path,
    [
      { name: "low", dtype: "F32", shape: [names.length], data: low },
      { name: "high", dtype: "F32", shape: [names.length], data: high },
      ...tasks.flatMap(({ task, minima, maxima, counts }) => [
        { name: `${task}.minima`, dtype: "F32" as const, shape, data: minima },
        { name: `${task}.maxima`, dtype: "F32" as const, shape, data: maxima },
        { name: `${task}.counts`, dtype: "F32" as const, shape: [...shape, bins], data: Float32Array.from(counts) },
      ]),
    ],
    { "quad.observations": JSON.stringify(metadata) },
  );
}

/** @throws InputError if the file holds no observations */
export async function readObservations(path: string): Promise<Observations> {
  const file = await openSafetensors(path);
  try {
    const text = file.metadata["quad.observations"];
    if (text === undefined) {
      throw new InputError({ what: "holds no observations", file: path, fix: "Run quad calibrate again." });
    }
    const { names, stepGroups, bins, tasks } = parseJsonFile(path, text, metadataSchema);
    return {
      names,
      stepGroups,
      bins,
      low: await file.readFloat32("low"),
      high: await file.readFloat32("high"),
      tasks: await Promise.all(
        tasks.map(async (task) => ({
          task,
          minima: await file.readFloat32(`${task}.minima`),
          maxima: await file.readFloat32(`${task}.maxima`),
          counts: Float64Array.from(await file.readFloat32(`${task}.counts`)),
        })),
      ),
    };
  } finally {
    await file.close();
  }
}
