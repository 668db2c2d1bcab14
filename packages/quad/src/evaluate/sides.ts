import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Task } from "@quad-lora/runtime";
import type { HashCache } from "../work/hash-tree.ts";
import { folderDrawer, folderIdentity } from "./folder-drawer.ts";
import type { DrawnVariant } from "./simulated-variants.ts";

type Tasks = ReadonlyMap<string, Readonly<Task>>;

/** Full precision, as a column of the contact sheet. */
export async function referenceVariant(folder: string, tasks: Tasks, hashes: HashCache): Promise<DrawnVariant> {
  return {
    info: {
      name: "reference",
      label: "full precision",
      description: "The original model with the original adapter.",
      kind: "reference",
    },
    drawer: folderDrawer(folder, tasks, await folderIdentity(folder, hashes)),
  };
}

/** What is evaluated, as a column of the contact sheet. */
export async function candidateVariant(folder: string, tasks: Tasks, hashes: HashCache): Promise<DrawnVariant> {
  return {
    info: {
      name: "candidate",
      label: isBundle(folder) ? "bundle" : "evaluated folder",
      description: isBundle(folder) ? "The bundle as it would ship." : "The folder under evaluation.",
      kind: "candidate",
    },
    drawer: folderDrawer(folder, tasks, await folderIdentity(folder, hashes)),
  };
}

export function isBundle(folder: string): boolean {
  return existsSync(join(folder, "manifest.json"));
}
