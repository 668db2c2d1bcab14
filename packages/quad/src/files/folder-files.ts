import { existsSync, readdirSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import type { FolderFiles } from "@quad-lora/runtime";
import { hashFile } from "./hash.ts";

/** A folder on disk for the runtime; ONNX Runtime maps its graphs and weights straight from the files. */
export function folderFiles(folder: string): FolderFiles {
  return {
    async read(path) {
      const file = join(folder, path);
      try {
        return new Uint8Array(await readFile(file));
      } catch (error) {
        throw new InputError({
          what: `cannot be read: ${(error as NodeJS.ErrnoException).code ?? error}`,
          file,
          fix: "The model folder is incomplete; copy or export it again.",
        });
      }
    },
    exists: async (path) => existsSync(join(folder, path)),
    list: async (path) => (existsSync(join(folder, path)) ? readdirSync(join(folder, path)).sort() : []),
    localPath: (path) => join(folder, path),
    size: async (path) => (await stat(join(folder, path)).catch(() => undefined))?.size,
    digest: (path) => hashFile(join(folder, path)),
    describe: (path) => join(folder, path),
  };
}
