import { constants, cp } from "node:fs/promises";
import { basename, join } from "node:path";
import { possibleGraphFiles } from "../model/graph-files.ts";
import { openModelFolder } from "../model/model-folder.ts";

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
