import { existsSync } from "node:fs";
import type { SafetensorsInput } from "@quad-lora/base";
import { InputError } from "@quad-lora/base";
import type { RandomState } from "@quad-lora/runtime";
import { z } from "zod";
import { parseJsonFile } from "../files/json.ts";
import { openSafetensors, writeSafetensors } from "../files/safetensors.ts";
import type { OptimizerState } from "./training-graph.ts";

/** A measurement of the parameters during training. */
export interface Evaluation {
  /** Steps done. */
  step: number;
  value: number;
}

/** How a training run went. */
export interface TrainingCurve {
  /** By step, the first at index 0. */
  losses: number[];
  /** Norms of the gradients before clipping. */
  gradientNorms: number[];
  evaluations: Evaluation[];
}

/** All that decides how training goes on: from it, the rest gives the same bytes as without a stop. */
export interface TrainingState extends OptimizerState {
  /** Steps done. */
  step: number;
  /** Exponential moving average of the parameters. */
  average: Float32Array | null;
  best: (Evaluation & { parameters: Float32Array }) | null;
  random: RandomState;
  curve: TrainingCurve;
}

const word = z
  .int()
  .min(0)
  .max(2 ** 32 - 1);
const evaluationSchema = z.strictObject({ step: z.int().min(0), value: z.number() });
const headerSchema = z.strictObject({
  version: z.literal(1),
  /** What was trained on what with which settings: another run must not go on from here. */
  identity: z.string(),
  step: z.int().min(0),
  random: z.strictObject({
    words: z.tuple([word, word, word, word]),
    spareNormal: z.number().nullable(),
  }),
  best: evaluationSchema.nullable(),
  evaluations: z.array(evaluationSchema),
});

const headerKey = "quad.training";

/** Writes a safetensors file, atomically: a kill at any time leaves this checkpoint or the one before. */
export async function writeCheckpoint(path: string, state: TrainingState, identity: string): Promise<void> {
  const { step, random, best, average, curve } = state;
  const tensors: SafetensorsInput[] = [];
  const add = (name: string, data: Float32Array | null | undefined) => {
    if (data) tensors.push({ name, dtype: "F32", shape: [data.length], data });
  };
  add("parameters", state.parameters);
  add("mean", state.mean);
  add("square", state.square);
  add("average", average);
  add("best", best?.parameters);
  add("losses", Float32Array.from(curve.losses));
  add("gradient_norms", Float32Array.from(curve.gradientNorms));
  const header: z.infer<typeof headerSchema> = {
    version: 1,
    identity,
    step,
    random: { words: [...random.words], spareNormal: random.spareNormal },
    best: best && { step: best.step, value: best.value },
    evaluations: curve.evaluations,
  };
  await writeSafetensors(path, tensors, { [headerKey]: JSON.stringify(header) });
}

/**
 * Reads a checkpoint; null where there is none.
 * @throws InputError if the file is not a checkpoint, or one of a run with another identity or size
 */
export async function readCheckpoint(path: string, identity: string, size: number): Promise<TrainingState | null> {
  if (!existsSync(path)) return null;
  const file = await openSafetensors(path);
  try {
    const text = file.metadata[headerKey];
    if (text === undefined) {
      throw new InputError({ what: "is not a training checkpoint", file: path, fix: "Remove the file." });
    }
    const header = parseJsonFile(path, text, headerSchema);
    const read = async (name: string) => {
      const data = await file.readFloat32(name);
      if (data.length === size || name === "losses" || name === "gradient_norms") return data;
      throw new InputError({
        what: "the checkpoint holds another number of parameters",
        file: path,
        where: name,
        expected: String(size),
        got: String(data.length),
        fix: "Remove the file to start anew.",
      });
    };
    if (header.identity !== identity) {
      throw new InputError({
        what: "the checkpoint belongs to a run with other settings or other data",
        file: path,
        fix: "Repeat that run's settings to go on with it, or remove the file to start anew.",
      });
    }
    return {
      step: header.step,
      random: header.random,
      parameters: await read("parameters"),
      mean: await read("mean"),
      square: await read("square"),
      average: file.entries.has("average") ? await read("average") : null,
      best: header.best && { ...header.best, parameters: await read("best") },
      curve: {
        losses: [...(await read("losses"))],
        gradientNorms: [...(await read("gradient_norms"))],
        evaluations: header.evaluations,
      },
    };
  } finally {
    await file.close();
  }
}
