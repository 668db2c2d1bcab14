import { existsSync } from "node:fs";
import { constants, cp } from "node:fs/promises";
import { basename, join } from "node:path";
import { tasksFileSchema } from "@quad-lora/runtime";
import { readRecord, writeRecord } from "../files/json.ts";
import { possibleGraphFiles } from "../model/graph-files.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { bundleFiles } from "./bundle-folder.ts";

/** Everything but the denoiser's graph, its slots and the adapters. */
export async function copyRest(exposed: string, component: string, target: string): Promise<void> {
  const { entries } = await openModelFolder(exposed);
  const replaced = new Set(possibleGraphFiles(exposed, component));
  for (const entry of entries) {
    await cp(join(exposed, entry), join(target, entry), {
      recursive: true,
      dereference: true,
      // Shares the text encoder's and the autoencoder's blocks where the file system can.
      mode: constants.COPYFILE_FICLONE,
      // Names with a dot are what interrupted work may have left.
      filter: (path) => !replaced.has(path) && !basename(path).startsWith("."),
    });
  }
}

/** Leaves out the tasks whose adapters are not there: asking for one would fail. */
export async function keepTasks(folder: string, adapters: readonly string[]): Promise<void> {
  const path = join(folder, bundleFiles.tasks);
  if (!existsSync(path)) return;
  const file = await readRecord(path, tasksFileSchema);
  const tasks = Object.entries(file.tasks).filter(([, { adapter }]) => {
    const needed = typeof adapter === "string" ? [adapter] : Object.keys(adapter ?? {});
    return needed.every((name) => adapters.includes(name));
  });
  await writeRecord(path, { ...file, tasks: Object.fromEntries(tasks) });
}
