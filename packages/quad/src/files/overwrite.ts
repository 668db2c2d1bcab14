import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";

/**
 * Overwriting is for folders that the same command wrote; anything else stays.
 * @param mark - file that such a folder has
 * @param what - what is wrong with another folder: `exists and is not a bundle`
 * @throws InputError if `out` exists, is not empty, and does not have the file
 */
export async function refuseForeignFolder(out: string, mark: string, what: string): Promise<void> {
  if (!existsSync(out) || existsSync(join(out, mark))) return;
  if ((await readdir(out).catch(() => ["a file"])).length === 0) return;
  throw new InputError({ what, file: out, fix: "Choose another --out, or remove it first." });
}
