import { existsSync, statSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { loadModel, type Model } from "@quad-lora/onnx";
import { familiesOfClass } from "@quad-lora/runtime";
import { z } from "zod";
import type { AdapterComponent } from "../adapters/types.ts";
import { readRecord } from "../files/json.ts";
import { componentFile } from "./graph-files.ts";

const modelIndexSchema = z.looseObject({ _class_name: z.string() });

/** A diffusers/Optimum folder: `model_index.json` with one sub-folder per component. */
export interface ModelFolder {
  path: string;
  /** Pipeline class that `model_index.json` names. */
  pipelineClass: string;
  /** The network that denoises. */
  denoiser: "unet" | "transformer";
  /** Components that adapters can change and that the folder holds as ONNX, the denoiser first. */
  adaptable: AdapterComponent[];
  /** Files and folders that make up the pipeline (and its licence), sorted; everything else in the folder is somebody's own. */
  entries: string[];
}

const adaptableComponents: readonly AdapterComponent[] = [
  "unet",
  "transformer",
  "text_encoder",
  "text_encoder_2",
  "text_encoder_3",
  "controlnet",
];

/** @throws InputError if the folder is not a diffusers/Optimum ONNX folder, or its pipeline class is not supported */
export async function openModelFolder(path: string): Promise<ModelFolder> {
  if (!existsSync(path) || !statSync(path).isDirectory()) {
    throw new InputError({
      what: existsSync(path) ? "is a file, not a folder" : "there is no such folder",
      file: path,
      expected: "a diffusers/Optimum ONNX folder",
      fix: "Give the folder that holds model_index.json.",
    });
  }
  const index = join(path, "model_index.json");
  if (!existsSync(index)) {
    throw new InputError({
      what: "there is no model_index.json",
      file: path,
      expected: "a diffusers/Optimum ONNX folder",
      fix: "Export the pipeline with Optimum: optimum-cli export onnx --model MODEL FOLDER.",
    });
  }
  const modelIndex = await readRecord(index, modelIndexSchema);
  const { _class_name: pipelineClass } = modelIndex;
  familiesOfClass(pipelineClass, index);
  // Optimum leaves the PyTorch pipeline's index, in which both graphs of the autoencoder are one component.
  const isOfVae = (name: string) => "vae" in modelIndex && /^vae_(en|de)coder$/.test(name);
  const entries = (await readdir(path)).filter(
    (name) =>
      Object.hasOwn(modelIndex, name) ||
      isOfVae(name) ||
      /^(model_index\.json|tasks\.json|(readme|licen[cs]e|notice)\b.*)$/i.test(name),
  );
  const adaptable = adaptableComponents.filter((component) => existsSync(componentFile(path, component)));
  const denoiser = adaptable.find((component) => component === "unet" || component === "transformer");
  if (denoiser !== "unet" && denoiser !== "transformer") {
    throw new InputError({
      what: "there is neither unet/model.onnx nor transformer/model.onnx",
      file: path,
      fix: "Export the pipeline to ONNX first; PyTorch weights alone are not enough.",
    });
  }
  return { path, pipelineClass, denoiser, adaptable, entries: entries.sort() };
}

/**
 * Loads a component's graph; its weights stay on disk.
 * @param options.allowMissingExternalData - for work on the graph alone: layers can be found and exposed, not saved or run
 */
export function loadComponent(
  folder: ModelFolder,
  component: AdapterComponent,
  options: { allowMissingExternalData?: boolean } = {},
): Model {
  return loadModel(componentFile(folder.path, component), options);
}

/**
 * A folder's `scheduler/scheduler_config.json`, and its path for messages. What the values mean is the runtime's to check.
 * @throws InputError if it is missing or no JSON object
 */
export async function readScheduler(folder: string): Promise<{ scheduler: unknown; schedulerFile: string }> {
  const schedulerFile = join(folder, "scheduler", "scheduler_config.json");
  const scheduler = await readRecord(schedulerFile, z.looseObject({}));
  return { scheduler, schedulerFile };
}
