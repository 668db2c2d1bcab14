import { join } from "node:path";
import type { Model } from "@quad-lora/onnx";
import { chooseFamily, type Family, familiesOfClass } from "@quad-lora/runtime";
import { componentFile } from "./graph-files.ts";
import type { ModelFolder } from "./model-folder.ts";

/**
 * The family of a model folder, by its pipeline class and its denoiser's inputs.
 *
 * @param graph - the denoiser's
 * @throws InputError when the graph lacks inputs that the class needs
 */
export function familyOf({ path, pipelineClass, denoiser }: ModelFolder, graph: Model): Family {
  const candidates = familiesOfClass(pipelineClass, join(path, "model_index.json"));
  const names = graph.graph.inputs.map(({ name }) => name);
  return chooseFamily(candidates, denoiser, names, componentFile(path, denoiser));
}
