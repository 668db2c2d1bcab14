import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { InputError } from "@quad-lora/base";
import { restoreFolder } from "./replace-folder.ts";

/** What is wrong with a folder that a command would overwrite, and what such a folder may hold. */
export interface OwnFolder {
  /** File that every folder has that the command wrote. */
  mark: string;
  /** What is wrong with another folder: `exists and is not a bundle`. */
  otherwise: string;
  /** File that only folders of another command have, and what these are. */
  other?: { mark: string; what: string };
  /** Whether the command may have written an entry; default: all are its own. */
  isOwn?(entry: string): boolean;
}

/**
 * Overwriting is for folders that the same command wrote; anything else stays.
 * @throws InputError if `out` is neither missing, nor empty, nor such a folder, or holds something besides
 */
export async function refuseForeignFolder(out: string, { mark, otherwise, other, isOwn }: OwnFolder): Promise<void> {
  await restoreFolder(out);
  if (!existsSync(out)) return;
  const fix = "Choose another --out, or remove it first.";
  const entries = await readdir(out).catch(() => null);
  if (entries?.length === 0) return;
  if (other && entries?.includes(other.mark)) throw new InputError({ what: other.what, file: out, fix });
  if (!entries?.includes(mark)) throw new InputError({ what: otherwise, file: out, fix });
  // Names with a dot are what systems and interrupted work leave.
  const foreign = entries.find((entry) => !entry.startsWith(".") && isOwn?.(entry) === false);
  if (foreign === undefined) return;
  throw new InputError({
    what: "holds something that would be lost with the folder that is replaced",
    file: out,
    got: foreign,
    fix: "Move it elsewhere, or choose another --out.",
  });
}
