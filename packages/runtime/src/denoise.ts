import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { Companion, Conditions, Family, Guided, LatentLayout, Row } from "./families/family.ts";
import { combineRows, rescale } from "./families/guidance.ts";
import { conditionTensors, type LatentSize, rowsPerRun, SampleInput, timestepInput } from "./network-inputs.ts";
import { type Component, floatsOf, type OrtModule, type TensorData, tensorData } from "./ort.ts";
import type { Scheduler } from "./schedulers/index.ts";

/** What is known after a step. */
export interface StepInfo {
  /** 1 after the first evaluation of the denoiser in this run. */
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
  /** All of the graph's own inputs by name, adapter inputs left out. Buffers are reused: copy what you keep. */
  inputs: Readonly<Record<string, TensorData>>;
  /** The network's prediction `[batch, channels, height, width]`, or as the family packs it. */
  output: TensorData;
}

/** A graph with the tensors of its adapter inputs. */
export interface Network {
  readonly graph: Component;
  readonly adapters: Record<string, Tensor>;
}

/** A denoising run, with everything encoded. */
export interface DenoiseInputs {
  ort: OrtModule;
  family: Pick<Family, "sample" | "output" | "timestep">;
  denoiser: Network;
  /** A network that runs before the denoiser, with inputs of its own. */
  companion: (Network & { definition: Companion; conditions: Conditions }) | undefined;
  scheduler: Scheduler;
  /** Where the scheduler's first step begins: `[channels, height, width]`. Changed in place. */
  latents: Float32Array;
  size: LatentSize;
  layout: LatentLayout | undefined;
  guided: Guided;
  /** Share by which guided predictions get back the spread of the last row's, 0 to 1. */
  guidanceRescale: number;
  /** Index of the first time step to take. */
  firstIndex: number;
  /** Draws unit-variance noise for one step, for schedulers that add some; may reuse its array. */
  stepNoise: () => Float32Array;
  signal: AbortSignal | undefined;
  onStep: ((info: StepInfo) => void) | undefined;
  onModelRun: ((run: ModelRun) => void) | undefined;
}

/**
 * The denoising loop: at every time step the network's predictions for all rows, guidance between them, then one step of the
 * scheduler. All buffers are made before the first step.
 *
 * The final scaled latents stand in `inputs.latents`.
 *
 * @throws the signal's reason when aborted, checked before every step
 * @throws InputError when a prediction is not finite: nothing but noise could come of it
 */
export async function denoise(inputs: DenoiseInputs): Promise<void> {
  const { family, scheduler, latents, guided, guidanceRescale, firstIndex } = inputs;
  const { rows, strengths } = guided;
  const rowsOfRun = rowsPerRun(inputs.denoiser.graph.input(family.sample), rows.length);
  const runs = Array.from({ length: Math.ceil(rows.length / rowsOfRun) }, (_, run) => {
    // A graph of a fixed batch gets rows again where there are none left.
    const own = Array.from({ length: rowsOfRun }, (_, row) => rows[(run * rowsOfRun + row) % rows.length]);
    return new Run(inputs, own);
  });
  const scaled = new Float32Array(latents.length);
  const prediction = new Float32Array(latents.length);
  const predictions = rows.map(() => new Float32Array(latents.length));
  const steps = scheduler.timesteps.length - firstIndex;
  for (let index = firstIndex; index < scheduler.timesteps.length; index++) {
    inputs.signal?.throwIfAborted();
    const timestep = scheduler.timesteps[index];
    scheduler.scaleModelInput(latents, index, scaled);
    for (const [number, run] of runs.entries()) {
      const output = await run.predict(scaled, timestep * family.timestep.scale, predictions, number * rowsOfRun);
      inputs.onModelRun?.({ step: index - firstIndex, steps, inputs: run.ownInputs(), output: tensorData(output) });
    }
    combineRows(predictions, strengths, prediction);
    refuseNotFinite(prediction, inputs.denoiser.graph.file, `step ${index - firstIndex + 1} of ${steps}`);
    if (guidanceRescale > 0 && rows.length > 1) rescale(prediction, predictions[rows.length - 1], guidanceRescale);
    scheduler.step(prediction, index, latents, latents, inputs.stepNoise);
    inputs.onStep?.({ step: index - firstIndex + 1, steps, timestep, latents });
  }
}

function refuseNotFinite(prediction: Float32Array, file: string, where: string): void {
  if (prediction.every(Number.isFinite)) return;
  throw new InputError({
    what: "the network predicts values that are not finite",
    file,
    where,
    fix: "Use lower strengths or guidance; if it stays, an adapter or the model is damaged, or overflows in float16.",
  });
}

/** The rows of a batch that go through the network at once. */
class Run {
  readonly #inputs: DenoiseInputs;
  readonly #rows: number;
  readonly #sample: SampleInput;
  readonly #timesteps: ReturnType<typeof timestepInput>[] = [];
  /** All inputs of the denoiser; those of the companion's outputs are renewed at every step. */
  readonly #feeds: Record<string, Tensor> = {};
  readonly #companionFeeds: Record<string, Tensor> = {};

  constructor(inputs: DenoiseInputs, rows: readonly Row[]) {
    const { ort, family, denoiser, companion, size, layout } = inputs;
    this.#inputs = inputs;
    this.#rows = rows.length;
    const port = denoiser.graph.input(family.sample);
    this.#sample = new SampleInput(ort, port, rows.length, size, rows[0].behind?.length ?? 0, layout);
    this.#sample.setBehind(rows);
    const conditions = rows.map((row) => row.conditions);
    this.#fill(this.#feeds, denoiser.graph, conditions);
    if (!companion) return;
    const known = Object.keys(conditions[0]).filter((name) => companion.graph.inputs.has(name));
    const shared = conditions.map((row) => Object.fromEntries(known.map((name) => [name, row[name]])));
    this.#fill(
      this.#companionFeeds,
      companion.graph,
      shared.map((row) => ({ ...row, ...companion.conditions })),
    );
  }

  #fill(feeds: Record<string, Tensor>, graph: Component, conditions: readonly Conditions[]): void {
    const { ort, family } = this.#inputs;
    const timestep = timestepInput(ort, graph, family.timestep.perRow ? this.#rows : 1);
    this.#timesteps.push(timestep);
    feeds[graph.input(family.sample).name] = this.#sample.tensor;
    feeds[timestep.name] = timestep.input.tensor;
    Object.assign(feeds, conditionTensors(ort, graph, conditions));
  }

  /** The denoiser's inputs, as they were in the last {@link predict}. */
  ownInputs(): Record<string, TensorData> {
    return Object.fromEntries(Object.entries(this.#feeds).map(([name, tensor]) => [name, tensorData(tensor)]));
  }

  /** Writes predictions as `[channels, height, width]`, from entry `first` on; gives the network's output, too. */
  async predict(
    latents: Float32Array,
    timestep: number,
    predictions: readonly Float32Array[],
    first: number,
  ): Promise<Tensor> {
    const { denoiser, companion, family, layout } = this.#inputs;
    this.#sample.setLatents(latents);
    for (const { input } of this.#timesteps) input.set(timestep);
    if (companion) {
      const outputs = await companion.graph.run({ ...companion.adapters, ...this.#companionFeeds });
      for (const [name, tensor] of Object.entries(outputs)) this.#feeds[companion.definition.inputFor(name)] = tensor;
    }
    const outputs = await denoiser.graph.run({ ...denoiser.adapters, ...this.#feeds });
    const output = outputs[family.output] ?? Object.values(outputs)[0];
    const values = floatsOf(output);
    const rowSize = values.length / this.#rows;
    predictions.slice(first, first + this.#rows).forEach((prediction, row) => {
      const own = values.subarray(row * rowSize, (row + 1) * rowSize);
      if (layout) layout.unpack(own, prediction);
      // What stands behind the prediction is a variance, which no scheduler here uses.
      else prediction.set(own.subarray(0, prediction.length));
    });
    return output;
  }
}
