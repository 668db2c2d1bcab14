import { mkdir, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { syncFolder } from "./sync.ts";
import { temporaryName } from "./temporary.ts";

/** What a file can be written from; text is written as UTF-8. */
export type FileContents = Uint8Array | string | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/**
 * Writes a file so that its name never stands for half a file: into a temporary file in the same folder, then renamed.
 * Creates missing folders; where anything fails, the temporary file is removed and an existing file stays as it was.
 */
export async function writeFileAtomically(path: string, contents: FileContents): Promise<void> {
  const folder = dirname(path);
  await mkdir(folder, { recursive: true });
  const temporary = join(folder, temporaryName(basename(path)));
  try {
    const handle = await open(temporary, "wx");
    try {
      const whole = typeof contents === "string" || contents instanceof Uint8Array;
      // `FileHandle.writeFile` on a handle continues at the current position and writes until everything is out.
      for await (const part of whole ? [contents] : contents) await handle.writeFile(part);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncFolder(folder);
}
