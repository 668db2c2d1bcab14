import { InputError } from "@quad/onnx";
import type { GenerateOptions, Pipeline, SafetensorsInput, TensorData } from "@quad/runtime";
import { openSafetensors, writeSafetensors } from "../files/safetensors.ts";

/** One picture of a task: what a user would ask for. */
export type TaskCase = Pick<
  GenerateOptions,
  "prompt" | "negativePrompt" | "image" | "mask" | "seed" | "steps" | "guidance" | "width" | "height"
>;

/** One run of the denoiser inside a real generation. */
export interface ModelCall {
  /** Index of the case. */
  caseIndex: number;
  /** Index of the time step, 0 first. */
  step: number;
  steps: number;
  /** The graph's own inputs (`sample`, `timestep`, `encoder_hidden_states`), adapter inputs left out. */
  inputs: Record<string, TensorData>;
  /** What the full-precision model returned: `out_sample [batch, channels, height, width]`. */
  output: TensorData;
}

/** Everything the denoiser saw and said while it generated a task's cases in full precision. */
export interface Trajectory {
  task: string;
  calls: ModelCall[];
}

/**
 * Runs the full-precision pipeline over a task's cases and keeps every call of the denoiser: the data that calibration,
 * sensitivity scores and distillation work on.
 */
export async function recordTrajectory(
  pipeline: Pipeline,
  task: string,
  cases: readonly TaskCase[],
  options: { signal?: AbortSignal; onProgress?: (done: number, total: number) => void } = {},
): Promise<Trajectory> {
  const calls: ModelCall[] = [];
  await pipeline.use(task);
  for (const [caseIndex, request] of cases.entries()) {
    await pipeline.generate({
      ...request,
      ...(options.signal ? { signal: options.signal } : {}),
      onModelRun: ({ step, steps, inputs, output }) => {
        calls.push({ caseIndex, step, steps, inputs: copyAll(inputs), output: copy(output) });
      },
    });
    options.onProgress?.(caseIndex + 1, cases.length);
  }
  return { task, calls };
}

function copy(tensor: TensorData): TensorData {
  return { ...tensor, dims: [...tensor.dims], data: (tensor.data as Float32Array).slice() } as TensorData;
}

function copyAll(tensors: Readonly<Record<string, TensorData>>): Record<string, TensorData> {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, copy(tensor)]));
}

const dtypeOf: Record<string, SafetensorsInput["dtype"]> = { float32: "F32", int64: "I64", float16: "F16" };

/** One safetensors file: tensors `CALL.inputs.NAME` and `CALL.output`, the calls' indices in the metadata. */
export async function writeTrajectory(path: string, trajectory: Trajectory): Promise<void> {
  const tensors: SafetensorsInput[] = [];
  const add = (name: string, { type, dims, data }: TensorData) =>
    tensors.push({ name, dtype: dtypeOf[type], shape: [...dims], data: data as ArrayBufferView });
  trajectory.calls.forEach((call, index) => {
    for (const [name, tensor] of Object.entries(call.inputs)) add(`${index}.inputs.${name}`, tensor);
    add(`${index}.output`, call.output);
  });
  const calls = trajectory.calls.map(({ caseIndex, step, steps }) => [caseIndex, step, steps]);
  await writeSafetensors(path, tensors, { "quad.task": trajectory.task, "quad.calls": JSON.stringify(calls) });
}

/** @throws InputError if the file is no trajectory */
export async function readTrajectory(path: string): Promise<Trajectory> {
  const file = await openSafetensors(path);
  try {
    const { "quad.task": task, "quad.calls": indices } = file.metadata;
    if (task === undefined || indices === undefined) {
      throw new InputError({ what: "is no recorded trajectory", file: path, fix: "Run quad calibrate again." });
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
        const { dtype, shape, bytes } = await file.read(name);
        const tensor = (
          dtype === "I64"
            ? { type: "int64", dims: [...shape], data: new BigInt64Array(bytes.slice().buffer) }
            : { type: "float32", dims: [...shape], data: new Float32Array(bytes.slice().buffer) }
        ) as TensorData;
        if (name.endsWith(".output")) output = tensor;
        else inputs[name.slice(name.indexOf(".inputs.") + 8)] = tensor;
      }
      calls.push({ caseIndex, step, steps, inputs, output: output! });
    }
    return { task, calls };
  } finally {
    await file.close();
  }
}
