import { existsSync, lstatSync, readdirSync } from "node:fs";
import { cp } from "node:fs/promises";
import { dirname, join, relative, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { externalFiles, linkLeavesFolder, loadModel, type Model } from "@quad-lora/onnx";
import { componentFile } from "../model/graph-files.ts";
import type { ModelFolder } from "../model/model-folder.ts";

/** Files of a component that hold no weights outside of the graph, or those that every runtime finds. */
const expected = /^(model\.onnx|model\.onnx_data|.*\.(json|txt|md))$/i;

/**
 * Graphs other than `exposed` whose weights lie in other files than `model.onnx_data`, such as one for every tensor. Browsers
 * are handed files one by one, and only that one by its name: such graphs are saved again, with their weights in it.
 */
export function scatteredGraphs(folder: ModelFolder, exposed: readonly string[]): [component: string, graph: Model][] {
  const components = folder.entries.filter(
    (entry) => !exposed.includes(entry) && existsSync(componentFile(folder.path, entry)),
  );
  return components.flatMap((component): [string, Model][] => {
    const path = componentFile(folder.path, component);
    if (readdirSync(dirname(path)).every((name) => expected.test(name))) return [];
    const model = loadModel(path);
    const isScattered = [...externalFiles(model)].some((file) => resolve(file) !== resolve(`${path}_data`));
    return isScattered ? [[component, model]] : [];
  });
}

/**
 * Copies the folder without the graphs that are written anew, their data files and the model's own adapters. Links become
 * files of their own.
 * @throws InputError for links that lead out of the folder: what they mean may not be the model's, and would be published with it
 */
export async function copyOtherFiles(folder: ModelFolder, written: readonly Model[], target: string): Promise<void> {
  const replaced = new Set(
    written.flatMap((model) => [model.file, ...externalFiles(model)]).map((path) => resolve(path)),
  );
  // Weights in other formats, which would lie beside the graph unread.
  const folders = new Set(written.map((model) => dirname(resolve(model.file))));
  const isOtherWeights = (path: string) =>
    folders.has(dirname(path)) && /\.(onnx|onnx_data|onnx\.data|safetensors|bin|msgpack)$/.test(path);
  for (const entry of folder.entries) {
    await cp(join(folder.path, entry), join(target, entry), {
      recursive: true,
      dereference: true,
      filter: (path) => {
        if (replaced.has(resolve(path)) || isOtherWeights(resolve(path))) return false;
        refuseForeignLink(folder.path, path);
        return true;
      },
    });
  }
}

function refuseForeignLink(folder: string, path: string): void {
  if (!lstatSync(path).isSymbolicLink()) return;
  let leaves = true;
  try {
    leaves = linkLeavesFolder(folder, path);
  } catch {
    // A link to nothing: refused as well.
  }
  if (!leaves) return;
  throw new InputError({
    what: "a link leads out of the model's folder",
    file: folder,
    where: relative(folder, path),
    expected: "a file, a link inside the folder, or one of the Hugging Face cache's own",
    fix: "Put a copy of the file in place of the link.",
  });
}
