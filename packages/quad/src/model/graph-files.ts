import { existsSync } from "node:fs";
import { stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { graphHash } from "@quad-lora/runtime";
import { hashFile } from "../files/hash.ts";

/** Where a model folder keeps a component's graph. */
export function componentFile(folder: string, component: string): string {
  return join(folder, component, "model.onnx");
}

/** Where `saveModel` puts the weights of a graph that has a data file. */
function dataFile(graph: string): string {
  return `${graph}_data`;
}

/** A component's graph and, where it has one, its data file, as Quad writes them. */
export function graphFiles(folder: string, component: string): string[] {
  const graph = componentFile(folder, component);
  return [graph, dataFile(graph)].filter((path, index) => index === 0 || existsSync(path));
}

/** Every file that a component's graph may have its weights in, by the names that exporters give them, and the graph. */
export function possibleGraphFiles(folder: string, component: string): string[] {
  const graph = componentFile(folder, component);
  return [graph, dataFile(graph), `${graph}.data`, join(dirname(graph), "weights.pb")];
}

/** Bytes of a component's graph with its weights. */
export async function graphBytes(folder: string, component: string): Promise<number> {
  const sizes = await Promise.all(graphFiles(folder, component).map(async (path) => (await stat(path)).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** What stands for a component's graph with its weights, see `graphHash` of the runtime. */
export async function graphIdentity(folder: string, component: string): Promise<string> {
  return graphHash(await Promise.all(graphFiles(folder, component).map(hashFile)));
}
