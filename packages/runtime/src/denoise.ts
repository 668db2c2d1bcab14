import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { Conditions, Family, LatentLayout, RowInput } from "./families/family.ts";
import {
  type Component,
  FloatInput,
  floatsOf,
  numbersTensor,
  type OrtModule,
  type TensorData,
  TimestepInput,
  tensorData,
} from "./ort.ts";
import type { Scheduler } from "./schedulers/index.ts";

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

/** What one row of the network's batch sees beside the latents. */
export interface DenoiseRow {
  conditions: Conditions;
  /** Channels behind the latents, the same at every step: `[more channels, height, width]`, possibly none. */
  conditioning: Float32Array;
}

/** The second network of a family with one, and what it sees. */
export interface Control {
  component: Component;
  adapters: Record<string, Tensor>;
  /** The control picture, `[3, height, width]` in pixels, 0 to 1. */
  picture: RowInput;
  scale: number;
}

/** A denoising run, with everything encoded. Sizes are in latents. */
export interface DenoiseInputs {
  ort: OrtModule;
  family: Family;
  denoiser: Component;
  scheduler: Scheduler;
  /** Tensors for the network's adapter inputs. */
  adapters: Record<string, Tensor>;
  /** Where the scheduler's first step begins: `[channels, height, width]`. Changed in place. */
  latents: Float32Array;
  latentChannels: number;
  height: number;
  width: number;
  /** At least one. */
  rows: readonly DenoiseRow[];
  /** Inputs without a batch axis. */
  shared: Conditions;
  /** How the network takes latents, where it is not as they are. */
  layout: LatentLayout | undefined;
  control: Control | undefined;
  /** Makes one prediction of those of all rows, in their order; may change them. */
  combine: (predictions: readonly Float32Array[], into: Float32Array) => void;
  /** Index of the first time step to take. */
  firstIndex: number;
  /** Draws unit-variance noise for one step, for schedulers that add some; may reuse its array. */
  stepNoise: () => Float32Array;
  signal: AbortSignal | undefined;
  onStep: ((info: StepInfo) => void) | undefined;
  onModelRun: ((run: ModelRun) => void) | undefined;
}

/**
 * The denoising loop: the network predicts for every row, guidance makes one prediction of them, and the scheduler takes one
 * step. All buffers are made before the first step.
 *
 * The final scaled latents stand in `inputs.latents`.
 *
 * @throws the signal's reason when aborted, checked before every step
 * @throws InputError when a prediction is not finite: nothing but noise could come of it
 */
export async function denoise(inputs: DenoiseInputs): Promise<void> {
  const { scheduler, latents } = inputs;
  const network = new Network(inputs);
  const scaled = new Float32Array(latents.length);
  const prediction = new Float32Array(latents.length);
  const steps = scheduler.timesteps.length - inputs.firstIndex;
  for (let index = inputs.firstIndex; index < scheduler.timesteps.length; index++) {
    inputs.signal?.throwIfAborted();
    scheduler.scaleModelInput(latents, index, scaled);
    const step = index - inputs.firstIndex;
    const predictions = await network.predict(scaled, scheduler.timesteps[index], { step, steps });
    inputs.combine(predictions, prediction);
    refuseNotFinite(prediction, inputs.denoiser.file, step, steps);
    scheduler.step(prediction, index, latents, latents, inputs.stepNoise);
    inputs.onStep?.({ step: step + 1, steps, timestep: scheduler.timesteps[index], latents });
  }
}

function refuseNotFinite(prediction: Float32Array, file: string, step: number, steps: number): void {
  if (prediction.every(Number.isFinite)) return;
  throw new InputError({
    what: "the network predicts values that are not finite",
    file,
    where: `step ${step + 1} of ${steps}`,
    fix: "Use lower strengths or guidance; if it stays, an adapter or the model is damaged, or overflows in float16.",
  });
}

/** The denoising network with its inputs for one generation. */
class Network {
  readonly #inputs: DenoiseInputs;
  /** Rows per run, and runs per step. */
  readonly #batch: number;
  readonly #runs: number;
  readonly #sample: FloatInput;
  readonly #timestep: TimestepInput;
  readonly #timestepName: string;
  /** Inputs that stay the same at every step, by run. */
  readonly #constant: Record<string, Tensor>[];
  readonly #packed: Float32Array;
  readonly #predictions: Float32Array[];

  constructor(inputs: DenoiseInputs) {
    const { ort, family, denoiser, latentChannels, height, width, rows, layout } = inputs;
    this.#inputs = inputs;
    const port = denoiser.input(family.sample);
    this.#batch = runBatch(port.shape[0], rows.length, denoiser.file);
    this.#runs = Math.max(1, Math.ceil(rows.length / this.#batch));
    const channels = latentChannels + rows[0].conditioning.length / (height * width);
    this.#sample = new FloatInput(ort, port, [this.#batch, ...(layout?.dims ?? [channels, height, width])]);
    const timestep = denoiser.input("timestep");
    this.#timestepName = timestep.name;
    this.#timestep = new TimestepInput(ort, timestep, family.timestep.perRow ? this.#batch : 1);
    this.#constant = Array.from({ length: this.#runs }, (_, run) => this.#constantInputs(run));
    this.#packed = layout ? new Float32Array(inputs.latents.length) : inputs.latents;
    this.#predictions = rows.map(() => new Float32Array(inputs.latents.length));
  }

  /** The network's predictions for all rows, as latents. Reused by the next call. */
  async predict(scaled: Float32Array, timestep: number, at: { step: number; steps: number }): Promise<Float32Array[]> {
    const { denoiser, family, onModelRun, rows } = this.#inputs;
    this.#timestep.set(timestep * family.timestep.scale);
    for (let run = 0; run < this.#runs; run++) {
      this.#writeSample(scaled, run);
      const own: Record<string, Tensor> = {
        [family.sample]: this.#sample.commit(),
        [this.#timestepName]: this.#timestep.tensor,
        ...this.#constant[run],
      };
      Object.assign(own, await this.#control(own));
      const outputs = await denoiser.run({ ...this.#inputs.adapters, ...own });
      const output = outputs[family.output] ?? Object.values(outputs)[0];
      onModelRun?.({
        ...at,
        inputs: Object.fromEntries(Object.entries(own).map(([name, tensor]) => [name, tensorData(tensor)])),
        output: tensorData(output),
      });
      const values = floatsOf(output);
      const rowSize = values.length / this.#batch;
      for (let row = 0; row < this.#batch && run * this.#batch + row < rows.length; row++) {
        this.#readRow(values.subarray(row * rowSize, (row + 1) * rowSize), this.#predictions[run * this.#batch + row]);
      }
    }
    return this.#predictions;
  }

  #row(run: number, row: number): DenoiseRow {
    const { rows } = this.#inputs;
    return rows[(run * this.#batch + row) % rows.length];
  }

  #writeSample(scaled: Float32Array, run: number): void {
    const { layout } = this.#inputs;
    layout?.pack(scaled, this.#packed);
    const latents = layout ? this.#packed : scaled;
    const rowSize = this.#sample.values.length / this.#batch;
    for (let row = 0; row < this.#batch; row++) {
      this.#sample.values.set(latents, row * rowSize);
      this.#sample.values.set(this.#row(run, row).conditioning, row * rowSize + latents.length);
    }
  }

  /** A variance that the network predicts behind the noise is left out. */
  #readRow(values: Float32Array, into: Float32Array): void {
    const { layout } = this.#inputs;
    if (layout) layout.unpack(values, into);
    else into.set(values.subarray(0, into.length));
  }

  #constantInputs(run: number): Record<string, Tensor> {
    const { ort, denoiser, rows, shared } = this.#inputs;
    const feeds: Record<string, Tensor> = {};
    for (const [name, { dims, values }] of Object.entries(rows[0].conditions)) {
      const port = denoiser.inputs.get(name);
      if (!port) continue;
      const all = new Float32Array(this.#batch * values.length);
      for (let row = 0; row < this.#batch; row++) {
        const { values: own } = this.#row(run, row).conditions[name];
        if (own.length !== values.length) throw new Error(`rows of ${name} differ in size`);
        all.set(own, row * values.length);
      }
      feeds[name] = numbersTensor(ort, port, all, [this.#batch, ...dims]);
    }
    for (const [name, { dims, values }] of Object.entries(shared)) {
      const port = denoiser.inputs.get(name);
      if (port) feeds[name] = numbersTensor(ort, port, Float32Array.from(values), dims);
    }
    return feeds;
  }

  /** What the second network adds inside of the first, by the first one's inputs. */
  async #control(own: Readonly<Record<string, Tensor>>): Promise<Record<string, Tensor>> {
    const { ort, control, denoiser } = this.#inputs;
    if (!control) return {};
    const { component, picture, scale } = control;
    const feeds: Record<string, Tensor> = { ...control.adapters };
    for (const [name, tensor] of Object.entries(own)) if (component.inputs.has(name)) feeds[name] = tensor;
    const port = component.input("controlnet_cond");
    const pictures = new Float32Array(this.#batch * picture.values.length);
    for (let row = 0; row < this.#batch; row++) pictures.set(picture.values, row * picture.values.length);
    feeds[port.name] = numbersTensor(ort, port, pictures, [this.#batch, ...picture.dims]);
    const strength = component.input("conditioning_scale");
    feeds[strength.name] = numbersTensor(ort, strength, Float32Array.of(scale), strength.shape.length > 0 ? [1] : []);
    const outputs = Object.entries(await component.run(feeds));
    const added = [...denoiser.inputs.keys()].filter((name) => /additional_residual/.test(name));
    return Object.fromEntries(added.map((name) => [name, residual(name, outputs, component.file)]));
  }
}

/** The second network's outputs bear the names of the first one's inputs, or shorter ones in the same order. */
function residual(name: string, outputs: readonly (readonly [string, Tensor])[], file: string): Tensor {
  const exact = outputs.find(([output]) => output === name);
  const [, kind, index] = /^(down|mid).*?(\d*)$/.exec(name) ?? [];
  const alike = outputs.filter(([output]) => output.startsWith(kind));
  const found = exact ?? alike[index ? Number(index) : 0];
  if (found) return found[1];
  throw new InputError({
    what: "the control network lacks an output that the denoiser takes",
    file,
    expected: name,
    got: outputs.map(([output]) => output).join(", "),
  });
}

/** Rows per run of the network: as many as are wanted, unless the graph's batch is fixed (compiled for a device, say). */
function runBatch(graphBatch: number | string | undefined, rows: number, file: string): number {
  if (typeof graphBatch !== "number" || graphBatch === rows) return rows;
  if (graphBatch >= 1 && graphBatch <= 3) return graphBatch;
  throw new InputError({
    what: "the graph's batch size is fixed to something else",
    file,
    expected: "1, 2, 3 or dynamic",
    got: String(graphBatch),
  });
}
