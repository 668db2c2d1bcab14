import type { SafetensorsInput } from "@quad-lora/base";
import { InputError } from "@quad-lora/base";
import type { GenerateOptions, TensorData } from "@quad-lora/runtime";
import { fromSafetensors, toSafetensors } from "../files/runtime-tensors.ts";
import { openSafetensors, writeSafetensors } from "../files/safetensors.ts";
import type { DenoiserCall } from "../model/denoiser-calls.ts";

/** One picture of a task: what a user would ask for. */
export type TaskCase = Pick<
  GenerateOptions,
  "prompt" | "negativePrompt" | "image" | "mask" | "seed" | "steps" | "guidance" | "width" | "height"
>;

/** One run of the denoiser inside a real generation. */
export interface ModelCall extends DenoiserCall {
  /** Index of the case. */
  caseIndex: number;
  /** Index of the time step, 0 first. */
  step: number;
  steps: number;
  /** The graph's own inputs by name, in its types; adapter inputs left out. */
  inputs: Readonly<Record<string, TensorData>>;
  /** What the full-precision model returned: `[batch, channels, height, width]`, or `[batch, patches, features]`. */
  output: TensorData;
}

/** What a case came to. */
export interface CaseResult {
  /** Strength of classifier-free guidance; 1: none. */
  guidance: number;
  /** Final scaled latents, `[channels, height / factor, width / factor]`. */
  latents: Float32Array;
}

/** Everything the denoiser saw and said while it generated a task's cases in full precision. */
export interface Trajectory {
  task: string;
  calls: ModelCall[];
  /** By case. Files of earlier versions lack it. */
  results?: CaseResult[];
}

/**
 * One safetensors file: tensors `CALL.inputs.NAME` and `CALL.output`, the calls' indices in the metadata; `case.CASE.latents`
 * and the guidance of the cases.
 */
export async function writeTrajectory(path: string, trajectory: Trajectory): Promise<void> {
  const tensors: SafetensorsInput[] = [];
  for (const [index, { inputs, output }] of trajectory.calls.entries()) {
    const named = Object.entries(inputs).map(([name, tensor]) => [`${index}.inputs.${name}`, tensor]);
    tensors.push(...toSafetensors({ ...Object.fromEntries(named), [`${index}.output`]: output }));
  }
  const { results } = trajectory;
  results?.forEach(({ latents }, index) => {
    tensors.push({ name: `case.${index}.latents`, dtype: "F32", shape: [latents.length], data: latents });
  });
  const calls = trajectory.calls.map(({ caseIndex, step, steps }) => [caseIndex, step, steps]);
  await writeSafetensors(path, tensors, {
    "quad.task": trajectory.task,
    "quad.calls": JSON.stringify(calls),
    ...(results ? { "quad.guidance": JSON.stringify(results.map(({ guidance }) => guidance)) } : {}),
  });
}

/** @throws InputError if the file is not a trajectory */
export async function readTrajectory(path: string): Promise<Trajectory> {
  const file = await openSafetensors(path);
  try {
    const { "quad.task": task, "quad.calls": indices } = file.metadata;
    if (task === undefined || indices === undefined) {
      throw new InputError({ what: "is not a recorded trajectory", file: path, fix: "Run quad calibrate again." });
    }
    const calls: ModelCall[] = [];
    const byCall = new Map<string, string[]>();
    for (const name of file.entries.keys()) {
      const call = name.slice(0, name.indexOf("."));
      byCall.set(call, [...(byCall.get(call) ?? []), name]);
    }
    for (const [index, [caseIndex, step, steps]] of (JSON.parse(indices) as number[][]).entries()) {
      const inputs: Record<string, TensorData> = {};
      let output: TensorData | undefined;
      for (const name of byCall.get(String(index)) ?? []) {
        const tensor = fromSafetensors(await file.read(name), path);
        if (name.endsWith(".output")) output = tensor;
        else inputs[name.slice(name.indexOf(".inputs.") + 8)] = tensor;
      }
      calls.push({ caseIndex, step, steps, inputs, output: output! });
    }
    const guidances = file.metadata["quad.guidance"];
    if (guidances === undefined) return { task, calls };
    const results = await Promise.all(
      (JSON.parse(guidances) as number[]).map(async (guidance, index) => ({
        guidance,
        latents: await file.readFloat32(`case.${index}.latents`),
      })),
    );
    return { task, calls, results };
  } finally {
    await file.close();
  }
}
