import { existsSync } from "node:fs";
import { cp, readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { elementCount, type PackedParameter, saveModel, Tensor } from "@quad-lora/onnx";
import { replaceFolder } from "../files/replace-folder.ts";
import { componentFile } from "../model/graph-files.ts";
import { loadComponent, type ModelFolder } from "../model/model-folder.ts";
import { withoutUndefined } from "../settings/without-undefined.ts";
import { type CompleteOptions, runDefaults, type TrainOptions } from "./options.ts";
import { runTraining, type TrainResult } from "./training-run.ts";
import { buildWeightsGraph, findWeights, freshWeights, weightsOf } from "./weights-graph.ts";

/** Options of {@link trainWeights}; `out` is a folder. */
export interface TrainWeightsOptions extends TrainOptions {
  /** Start from random weights instead of the model's. */
  fromScratch?: boolean;
}

/** Defaults of {@link TrainWeightsOptions}. */
export const trainWeightsDefaults = { ...runDefaults, layers: "all", learningRate: 1e-4 } as const;

/**
 * Stage: plain model folder and a folder of pictures -> model folder of the same layout whose UNet has trained weights. With
 * `layers` other than `all` only the weights and biases of those layers are trained. Resumable and reproducible as
 * `runTraining` says. The folder appears under its name only when complete.
 * @throws InputError for folders that do not fit, or that are in the way; the signal's reason on abort, after a checkpoint
 * was written
 */
export async function trainWeights(modelPath: string, given: TrainWeightsOptions): Promise<TrainResult> {
  const options = { ...trainWeightsDefaults, ...withoutUndefined(given) } as CompleteOptions &
    Pick<TrainWeightsOptions, "fromScratch">;
  const out = resolve(options.out);
  await refuseUsedFolder(out);
  return runTraining(modelPath, options, async ({ folder, model, layers }, graphOptions) => {
    const all = findWeights(model);
    const weights = options.layers === "all" ? all : weightsOf(all, layers);
    const fresh = options.fromScratch ? freshWeights(weights, options.seed) : null;
    const graph = await buildWeightsGraph(model, weights, graphOptions);
    return {
      graph,
      layers,
      initial: fresh ?? graph.initial,
      identity: ["weights", String(fresh !== null), graph.training.layout.map(({ name }) => name).join()],
      write: (parameters) => writeTrainedFolder(folder, out, graph.training.layout, parameters),
    };
  });
}

/** A copy of the folder whose UNet holds the trained values; everything else as it is, adapters for the old weights left out. */
async function writeTrainedFolder(
  folder: ModelFolder,
  out: string,
  layout: readonly PackedParameter[],
  parameters: Float32Array,
): Promise<void> {
  const model = loadComponent(folder, "unet");
  const values = model.graph.valuesByName();
  for (const { name, offset, dims } of layout) {
    const end = offset + elementCount(dims);
    values.get(name)!.initializer = Tensor.float32(dims, parameters.subarray(offset, end));
  }
  await replaceFolder(out, async (temporary) => {
    for (const entry of folder.entries) {
      if (entry === "unet") continue;
      await cp(join(folder.path, entry), join(temporary, entry), { recursive: true, dereference: true });
    }
    const settings = join(folder.path, "unet", "config.json");
    if (existsSync(settings)) await cp(settings, join(temporary, "unet", "config.json"), { dereference: true });
    await saveModel(model, componentFile(temporary, "unet"));
  });
}

async function refuseUsedFolder(out: string): Promise<void> {
  if (!existsSync(out) || (await readdir(out).catch(() => ["a file"])).length === 0) return;
  throw new InputError({
    what: "exists already",
    file: out,
    fix: "Choose another --out, or remove it first.",
  });
}
