import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import {
  type Component,
  FloatInput,
  floatsOf,
  type OrtModule,
  type TensorData,
  TimestepInput,
  tensorData,
} from "./ort.ts";
import type { Scheduler } from "./schedulers/index.ts";
import type { PromptEncoding } from "./text-encoder.ts";

/** What is known after a step. */
export interface StepInfo {
  /** 1 after the first evaluation of the UNet in this run. */
  step: number;
  /** Evaluations in this run: fewer than the steps asked for when it starts from a picture, more with some schedulers. */
  steps: number;
  timestep: number;
  /** Scaled latents `[channels, height, width]`. Reused: copy what you keep. */
  latents: Float32Array;
}

/** One run of the denoising network: for calibration, distillation and diagnosis. */
export interface ModelRun {
  /** Index among the time steps of this generation, 0 first. */
  step: number;
  steps: number;
  /** The graph's inputs by name, adapter inputs left out. Buffers are reused: copy what you keep. */
  inputs: Readonly<Record<string, TensorData>>;
  /** The network's prediction `[batch, channels, height, width]`. */
  output: TensorData;
}

/** A denoising run, with everything encoded. Sizes are in latents. */
export interface DenoiseInputs {
  ort: OrtModule;
  unet: Component;
  scheduler: Scheduler;
  /** Tensors for the UNet's adapter inputs. */
  adapters: Record<string, Tensor>;
  /** Where the scheduler's first step begins: `[channels, height, width]`. Changed in place. */
  latents: Float32Array;
  latentChannels: number;
  height: number;
  width: number;
  /** Channels behind the latents, the same at every step: `[more channels, height, width]`, possibly none. */
  conditioning: Float32Array;
  prompt: PromptEncoding;
  /** For guidance; without it the UNet sees only the prompt. */
  unconditional: PromptEncoding | undefined;
  guidance: number;
  /** Index of the first time step to take. */
  firstIndex: number;
  /** Draws unit-variance noise for one step, for schedulers that add some; may reuse its array. */
  stepNoise: () => Float32Array;
  signal: AbortSignal | undefined;
  onStep: ((info: StepInfo) => void) | undefined;
  onModelRun: ((run: ModelRun) => void) | undefined;
}

/**
 * The denoising loop: `prediction = unconditional + guidance (conditional - unconditional)` (Ho and Salimans,
 * "Classifier-free diffusion guidance", 2022), then one step of the scheduler. All buffers are made before the first step.
 *
 * The final scaled latents stand in `inputs.latents`.
 *
 * @throws the signal's reason when aborted, checked before every step
 */
export async function denoise(inputs: DenoiseInputs): Promise<void> {
  const { ort, unet, scheduler, latentChannels, height, width, prompt, unconditional, guidance } = inputs;
  const plane = height * width;
  const latentSize = latentChannels * plane;
  const rowSize = latentSize + inputs.conditioning.length;
  const rows = unconditional ? [unconditional, prompt] : [prompt];

  const samplePort = unet.input("sample");
  const statesPort = unet.input("encoder_hidden_states");
  const batch = runBatch(samplePort.shape[0], rows.length, unet.file);
  const runs = Math.max(1, rows.length / batch);

  const sample = new FloatInput(ort, samplePort, [batch, rowSize / plane, height, width]);
  const timestep = new TimestepInput(ort, unet.input("timestep"));
  const states = Array.from({ length: runs }, (_, run) => {
    const input = new FloatInput(ort, statesPort, [batch, prompt.tokens, prompt.width]);
    for (let row = 0; row < batch; row++) {
      const { values } = rows[(run * batch + row) % rows.length];
      if (values.length !== prompt.values.length) throw new Error("prompt encodings differ in size");
      input.values.set(values, row * values.length);
    }
    input.commit();
    return input.tensor;
  });
  for (let row = 0; row < batch; row++) sample.values.set(inputs.conditioning, row * rowSize + latentSize);
  const feeds: Record<string, Tensor> = {
    ...inputs.adapters,
    [samplePort.name]: sample.tensor,
    [unet.input("timestep").name]: timestep.tensor,
  };

  const ownInputs = [samplePort.name, unet.input("timestep").name, statesPort.name];
  const { latents } = inputs;
  const scaled = new Float32Array(latentSize);
  const prediction = new Float32Array(latentSize);
  const predictions: Float32Array[] = [];
  const steps = scheduler.timesteps.length - inputs.firstIndex;
  for (let index = inputs.firstIndex; index < scheduler.timesteps.length; index++) {
    inputs.signal?.throwIfAborted();
    scheduler.scaleModelInput(latents, index, scaled);
    for (let row = 0; row < batch; row++) sample.values.set(scaled, row * rowSize);
    sample.commit();
    timestep.set(scheduler.timesteps[index]);
    for (let run = 0; run < runs; run++) {
      feeds[statesPort.name] = states[run];
      const outputs = await unet.run(feeds);
      const output = outputs.out_sample ?? Object.values(outputs)[0];
      const values = floatsOf(output);
      inputs.onModelRun?.({
        step: index - inputs.firstIndex,
        steps,
        inputs: Object.fromEntries(ownInputs.map((name) => [name, tensorData(feeds[name])])),
        output: tensorData(output),
      });
      for (let row = 0; row < batch; row++) {
        predictions[run * batch + row] = values.subarray(row * latentSize, (row + 1) * latentSize);
      }
    }
    const [first, second] = predictions as [Float32Array, Float32Array];
    if (unconditional) {
      for (let i = 0; i < latentSize; i++) prediction[i] = first[i] + guidance * (second[i] - first[i]);
    } else {
      prediction.set(first);
    }
    scheduler.step(prediction, index, latents, latents, inputs.stepNoise);
    inputs.onStep?.({ step: index - inputs.firstIndex + 1, steps, timestep: scheduler.timesteps[index], latents });
  }
}

/** Rows per run of the UNet: as many as are wanted, unless the graph's batch is fixed (compiled for a device, say). */
function runBatch(graphBatch: number | string | undefined, rows: number, file: string): number {
  if (typeof graphBatch !== "number" || graphBatch === rows) return rows;
  if (graphBatch === 1 || graphBatch === 2) return graphBatch;
  throw new InputError({
    what: "the graph's batch size is fixed to something else",
    file,
    expected: "1, 2 or dynamic",
    got: String(graphBatch),
  });
}
