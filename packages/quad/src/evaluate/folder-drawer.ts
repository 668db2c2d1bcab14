import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Task } from "@quad-lora/runtime";
import { openFolder } from "../model/open-folder.ts";
import type { HashCache } from "../work/hash-tree.ts";
import { adaptersOf } from "./cases.ts";
import type { Drawer } from "./pictures.ts";

/** Hashes of a model folder: of its adapters by file name without extension, and of everything else. */
export interface FolderIdentity {
  base: unknown;
  adapters: Record<string, unknown>;
}

export async function folderIdentity(folder: string, hashes: HashCache): Promise<FolderIdentity> {
  const base: unknown[] = [];
  for (const name of (await readdir(folder)).sort()) {
    if (name !== "adapters" && !name.startsWith(".")) base.push([name, await hashes.hash(join(folder, name))]);
  }
  const adapters: FolderIdentity["adapters"] = {};
  for (const file of await readdir(join(folder, "adapters")).catch(() => [])) {
    if (file.endsWith(".safetensors")) {
      adapters[file.slice(0, -".safetensors".length)] = await hashes.hash(join(folder, "adapters", file));
    }
  }
  return { base, adapters };
}

/** Draws with a folder as it is; an adapter's pictures do not depend on other adapters. */
export function folderDrawer(
  folder: string,
  tasks: ReadonlyMap<string, Readonly<Task>>,
  { base, adapters }: FolderIdentity,
): Drawer {
  return {
    identity: (task) => {
      const used = adaptersOf(task, tasks.get(task) ?? {});
      return [base, Object.entries(used).map(([name, strength]) => [name, strength, adapters[name]])];
    },
    open: async () => {
      const pipeline = await openFolder(folder);
      return {
        pipeline,
        use: (task) => pipeline.use(adaptersOf(task, tasks.get(task) ?? {})),
        dispose: () => pipeline.dispose(),
      };
    },
  };
}
