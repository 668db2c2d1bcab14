import { lstat, readdir, readFile, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import { checkRelativePath, InputError } from "@quad-lora/base";
import { linkLeavesFolder } from "@quad-lora/onnx";
import type { FolderFiles } from "@quad-lora/runtime";
import { hashFile } from "./hash.ts";

/**
 * A folder on disk for the runtime; ONNX Runtime maps its graphs and weights straight from the files. Opens regular files
 * inside the folder only (see `requireInside`).
 */
export function folderFiles(folder: string): FolderFiles {
  const at = (path: string) => join(folder, path === "" ? "" : checkRelativePath(path, { file: folder }));
  return {
    async read(path) {
      const file = at(path);
      try {
        await requireInside(folder, path);
        return new Uint8Array(await readFile(file));
      } catch (error) {
        if (error instanceof InputError) throw error;
        throw new InputError({
          what: `cannot be read: ${(error as NodeJS.ErrnoException).code ?? error}`,
          file,
          fix: "The model folder is incomplete; copy or export it again.",
        });
      }
    },
    async exists(path) {
      const file = at(path);
      if ((await statOrAbsent(file)) === undefined) return false;
      await requireInside(folder, path);
      return true;
    },
    async list(path) {
      if (!(await statOrAbsent(at(path)))?.isDirectory()) return [];
      const entries = await readdir(at(path), { withFileTypes: true });
      return entries
        .filter((entry) => !entry.isDirectory())
        .map(({ name }) => name)
        .sort();
    },
    localPath: (path) => at(path),
    size: async (path) => (await statOrAbsent(at(path)))?.size,
    digest: async (path) => {
      await requireInside(folder, path);
      return hashFile(at(path));
    },
    describe: (path) => join(folder, path),
  };
}

/** @throws what the operating system says where the file may be there and cannot be asked for */
async function statOrAbsent(file: string) {
  try {
    return await stat(file);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new InputError({ what: `cannot be looked at: ${code}`, file, fix: "Check the permissions of the folder." });
  }
}

/**
 * Refuses a file that is not a regular one, or that a link leads out of the folder. The Hugging Face cache's own links, from
 * `snapshots/REVISION` to `blobs` of the same repository, are followed.
 * @param path - relative to the folder
 * @throws InputError naming the file and where it leads
 */
export async function requireInside(folder: string, path: string): Promise<void> {
  const file = join(folder, path);
  const info = await lstat(file);
  if (!(await stat(file)).isFile()) {
    throw new InputError({
      what: "is not a regular file",
      file,
      got: info.isDirectory() ? "a folder" : "a pipe, device or socket",
      fix: "Remove it, or copy the model folder again.",
    });
  }
  if (!linkLeavesFolder(folder, file)) return;
  throw new InputError({
    what: "is a link that leads out of its folder",
    file,
    got: await realpath(file),
    fix: "Put the file itself into the folder if it belongs there.",
  });
}
