import type { Model } from "@quad-lora/onnx";
import { importAdapter } from "../adapters/import.ts";
import { type WriteAdapterOptions, writeKohya, writePeft } from "../adapters/write.ts";
import { resolveAdapter, toModule } from "../expose/expose.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import type { Layer } from "../layers/find-layers.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import { withoutUndefined } from "../settings/without-undefined.ts";
import { type AdapterGraph, type AdapterGraphOptions, buildAdapterGraph } from "./adapter-graph.ts";
import { adapterLayers, continueAdapter, initialFactors } from "./factors.ts";
import { type CompleteOptions, runDefaults, type TrainOptions } from "./options.ts";
import { buildQuantizedAdapterGraph } from "./quantized-graph.ts";
import { bytesOf, hashOf } from "./run-identity.ts";
import { runTraining, type TraineeBuilder, type TrainResult } from "./training-run.ts";

/** Options of {@link trainAdapter}; `out` is a file (kohya) or folder (PEFT). */
export interface TrainAdapterOptions extends TrainOptions {
  format?: "kohya" | "peft";
  dtype?: NonNullable<WriteAdapterOptions["dtype"]>;
  rank?: number;
  /** Strength of the branch is alpha / rank; folded into B in the file. Default: the rank. */
  alpha?: number;
  /** LoRA file or PEFT folder to start from; default: factors that change nothing. */
  initial?: string;
  /** Profile file: train on the quantized base. The model folder is then the exposed one. */
  profile?: string;
}

/** Defaults of {@link TrainAdapterOptions}. */
export const trainDefaults = { ...runDefaults, format: "kohya", dtype: "F16", rank: 16 } as const;

/**
 * Stage: plain model folder and a folder of pictures -> LoRA file. Trains low-rank factors (Hu et al. 2021, arXiv
 * 2106.09685) on the UNet's chosen layers in ONNX Runtime; resumable and reproducible as `runTraining` says. With a profile:
 * exposed folder -> LoRA file, trained on the base as a compiled bundle computes it.
 * @throws InputError for folders that do not fit; the signal's reason on abort, after a checkpoint was written
 */
export async function trainAdapter(modelPath: string, given: TrainAdapterOptions): Promise<TrainResult> {
  const options = { ...trainDefaults, ...withoutUndefined(given) } as CompleteOptions &
    Required<Pick<TrainAdapterOptions, "format" | "dtype" | "rank">> &
    Pick<TrainAdapterOptions, "alpha" | "initial" | "profile">;
  const { rank, seed } = options;
  const scale = (options.alpha ?? rank) / rank;
  const profile = options.profile ? await readProfile(options.profile) : null;
  const build: TraineeBuilder = async ({ folder, model, layers: candidates }, common) => {
    const graphOptions = { ...common, rank, scale };
    const graph = profile
      ? await quantizedGraph(folder.path, options.profile!, profile, model, candidates, graphOptions)
      : await buildAdapterGraph(model, candidates, graphOptions);
    const { slots, training } = graph;
    const names = new Set(slots.map(({ name }) => name));
    const layers = candidates.filter(({ name }) => names.has(name));
    const modules = layers.map((layer) => toModule("unet", layer));
    const initial = initialFactors(training.layout, slots, seed);
    if (options.initial) {
      const source = resolveAdapter(options.initial, folder.path);
      const { layers: factors } = await importAdapter(source, modules, { name: "initial" });
      continueAdapter(initial, training.layout, slots, factors, scale);
    }
    return {
      graph,
      layers,
      initial,
      identity: ["adapter", JSON.stringify({ rank, scale, profile }), [...names].join(), hashOf([bytesOf(initial)])],
      write: async (parameters, metadata) => {
        const factors = adapterLayers("unet", slots, training.layout, parameters, scale);
        const write = options.format === "peft" ? writePeft : writeKohya;
        await write(options.out, factors, modules, { dtype: options.dtype, metadata });
      },
    };
  };
  return runTraining(modelPath, options, build, profile !== null);
}

async function quantizedGraph(
  folder: string,
  profileFile: string,
  profile: Profile,
  model: Model,
  layers: readonly Layer[],
  options: AdapterGraphOptions,
): Promise<AdapterGraph> {
  const exposed = await ExposedModel.open(folder);
  await exposed.refuse(profile, profileFile);
  return buildQuantizedAdapterGraph(model, exposed.slots, profile, layers, options);
}
