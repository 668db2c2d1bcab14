import { serializeSafetensors } from "@quad-lora/base";
import type { Model } from "@quad-lora/onnx";
import type { GeneratedImage, Pipeline, SlotsFile } from "@quad-lora/runtime";
import type { EncodedAdapter } from "../factors/encode-factors.ts";
import { factorMetadata } from "../factors/factor-file.ts";
import { openWithGraph } from "../model/open-with-graph.ts";
import { runCall } from "../model/run-call.ts";
import type { QuantizationPoint } from "../quantizable/points.ts";
import { type Encoding, encodingRange } from "../quantization/index.ts";
import type { ModelCall, TaskCase } from "../records/trajectory.ts";
import { buildSimulation, encodingInputs, type Simulation, type SimulationOptions } from "./simulation-graph.ts";

/**
 * An exposed folder whose denoiser quantizes in simulation. One session serves every profile and adapter: encodings and
 * factors are inputs.
 */
export class SimulatedPipeline {
  readonly component: string;
  readonly points: readonly QuantizationPoint[];
  readonly layers: Simulation["layers"];
  readonly pipeline: Pipeline;

  private constructor(component: string, { points, layers }: Simulation, pipeline: Pipeline) {
    this.component = component;
    this.points = points;
    this.layers = layers;
    this.pipeline = pipeline;
  }

  /** @param prepared - the component's graph from `prepareGraph`; stays as it is */
  static async open(
    folder: string,
    component: string,
    prepared: Model,
    slots: SlotsFile["components"][string],
    options: SimulationOptions & { threads?: number | undefined },
  ): Promise<SimulatedPipeline> {
    const simulation = buildSimulation(prepared, slots, options);
    const pipeline = await openWithGraph(folder, component, simulation.model, options.threads);
    return new SimulatedPipeline(component, simulation, pipeline);
  }

  /** Sets the encodings of all points, in their order. */
  setEncodings(encodings: readonly Encoding[]): void {
    const vector = (pick: (encoding: Encoding) => number) => ({
      type: "float32" as const,
      dims: [encodings.length],
      data: Float32Array.from(encodings, pick),
    });
    this.pipeline.bind(this.component, {
      [encodingInputs.scale]: vector(({ scale }) => scale[0]),
      [encodingInputs.low]: vector((encoding) => encodingRange(encoding).min),
      [encodingInputs.high]: vector((encoding) => encodingRange(encoding).max),
    });
  }

  /** Puts an adapter's quantized factors in place of what the folder holds under its name. */
  setAdapter(name: string, adapter: Pick<EncodedAdapter, "rank" | "values">): void {
    this.pipeline.addAdapter(name, serializeSafetensors(adapter.values, factorMetadata(adapter.rank)));
  }

  /** The denoiser's output for a recorded call, with the task in use. */
  async predict(call: ModelCall): Promise<Float32Array> {
    const outputs = await runCall(this.pipeline, this.component, call.inputs);
    return Object.values(outputs)[0].data as Float32Array;
  }

  async generate(task: string, request: TaskCase, signal?: AbortSignal): Promise<GeneratedImage> {
    await this.pipeline.use(task);
    return this.pipeline.generate({ ...request, signal });
  }

  dispose(): Promise<void> {
    return this.pipeline.dispose();
  }
}
