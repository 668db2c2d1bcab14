import { cloneModel, deadCodeElimination, type Model, runPasses } from "@quad-lora/onnx";
import type { SlotsFile, TensorData } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { fixFactors, fixStrength } from "../expose/fix-factors.ts";
import { openFromFile } from "../train/training-graph.ts";
import type { FeatureBlock } from "./feature-blocks.ts";

/** Name of the training graph's input for the teacher's activations behind a block. */
export const featureInput = (block: FeatureBlock): string => `distill.features.${block.name}`;

/**
 * The full-precision denoiser with the adapter as it was given, up to the blocks whose activations the student is compared
 * with. They are computed for each batch: stored for all recorded calls they would be many times as large as the model.
 */
export class FeatureTeacher {
  readonly #session: ort.InferenceSession;
  readonly #blocks: readonly FeatureBlock[];

  private constructor(session: ort.InferenceSession, blocks: readonly FeatureBlock[]) {
    this.#session = session;
    this.#blocks = blocks;
  }

  /**
   * @param prepared - the graph that the student is made from, in the batch's shape; not changed
   * @param adapter - factors by graph input, in full precision; slots without one have zeros
   */
  static async open(
    prepared: Model,
    slots: SlotsFile["components"][string],
    adapter: { rank: number; tensors: ReadonlyMap<string, Float32Array> },
    blocks: readonly FeatureBlock[],
    threads = 2,
  ): Promise<FeatureTeacher> {
    const model = cloneModel(prepared);
    const { graph } = model;
    fixStrength(graph, slots.strengthInput, adapter.rank);
    fixFactors(graph, slots, adapter.rank, adapter.tensors);
    const values = new Map([...graph.nodes].flatMap(({ outputs }) => outputs.map((value) => [value?.name, value])));
    graph.outputs.splice(0, graph.outputs.length, ...new Set(blocks.map(({ output }) => values.get(output)!)));
    await runPasses(model, [deadCodeElimination]);
    return new FeatureTeacher(await openFromFile(model, threads), blocks);
  }

  /**
   * The batch with the teacher's activations added, named by {@link featureInput}.
   * @param batch - holds at least the denoiser's own inputs
   */
  async withFeatures(batch: Readonly<Record<string, TensorData>>): Promise<Record<string, TensorData>> {
    const feeds: Record<string, ort.Tensor> = {};
    for (const name of this.#session.inputNames) {
      const { type, data, dims } = batch[name];
      feeds[name] = new ort.Tensor(type, data as Float32Array, dims);
    }
    const results = await this.#session.run(feeds);
    const extended = { ...batch };
    for (const block of this.#blocks) {
      const { data } = results[block.output];
      extended[featureInput(block)] = {
        type: "float32",
        dims: [...block.dims],
        data: data as Float32Array<ArrayBuffer>,
      };
    }
    return extended;
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}
