import { existsSync } from "node:fs";
import { cp, link, mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { setTimeout } from "node:timers/promises";
import { removeAbandonedLock, withFolderLock } from "./folder-lock.ts";
import { syncFolder, syncTree } from "./sync.ts";
import { isAbandoned, removeAbandoned, replacedSuffix, temporaryName } from "./temporary.ts";

/**
 * Writes a folder so that its name never stands for a half one, and puts it in the place of an older one. What a process
 * that was killed left is put right first. A kill between the two renames leaves the old folder beside its name;
 * {@link restoreFolder} puts it back.
 * @param write - writes everything into the folder it is given
 * @param beforeSwap - the last look at the old folder: until the new one has taken its place, nobody else changes it
 */
export async function replaceFolder<Result>(
  path: string,
  write: (temporary: string) => Promise<Result>,
  beforeSwap?: (temporary: string, result: Result) => Promise<void>,
): Promise<Result> {
  const out = resolve(path);
  const parent = dirname(out);
  await restoreFolder(out);
  const temporary = join(parent, temporaryName(basename(out)));
  await mkdir(temporary, { recursive: true });
  try {
    const result = await write(temporary);
    await syncTree(temporary);
    await withFolderLock(out, async () => {
      await beforeSwap?.(temporary, result);
      await swap(temporary, out);
    });
    return result;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** Takes the place of a folder. The caller has its lock. */
async function swap(temporary: string, out: string): Promise<void> {
  const old = join(dirname(out), temporaryName(`${basename(out)}${replacedSuffix}`));
  const isThere = existsSync(out);
  if (isThere) await rename(out, old);
  try {
    await rename(temporary, out);
  } catch (error) {
    if (isThere) await rename(old, out);
    throw error;
  }
  await syncFolder(dirname(out));
  await rm(old, { recursive: true, force: true });
}

/**
 * Puts right what a process left that was killed while it replaced a folder: an old folder goes back where the new one did not
 * get its place, and leftovers go. To be called before a folder is read, or taken for missing.
 */
export async function restoreFolder(path: string): Promise<void> {
  const out = resolve(path);
  const parent = dirname(out);
  for (const name of await replacedFolders(out)) {
    // One that is being replaced now is there in a moment.
    for (let tries = 0; tries < 100 && !existsSync(out) && !(await isLeft(parent, name)); tries++) await setTimeout(20);
    if (!existsSync(out)) await rename(join(parent, name), out).catch(() => undefined);
  }
  // Where nothing can be written, leftovers stay.
  if (existsSync(out)) await removeAbandoned(parent, `${basename(out)}${replacedSuffix}`).catch(() => undefined);
  await removeAbandoned(parent, basename(out)).catch(() => undefined);
  await removeAbandonedLock(out).catch(() => undefined);
}

/** Names of what stood under this name before, the latest first. */
async function replacedFolders(out: string): Promise<string[]> {
  const prefix = `.${basename(out)}${replacedSuffix}.`;
  const names = (await readdir(dirname(out)).catch(() => [])).filter((name) => name.startsWith(prefix));
  const times = new Map<string, number>();
  for (const name of names) times.set(name, (await stat(join(dirname(out), name)).catch(() => null))?.mtimeMs ?? 0);
  return names.sort((a, b) => times.get(b)! - times.get(a)!);
}

async function isLeft(parent: string, name: string): Promise<boolean> {
  const info = await stat(join(parent, name)).catch(() => null);
  return info !== null && isAbandoned(name, info.mtimeMs);
}

/** Takes a file over into another folder: as a link where that can be, for files that are replaced and never changed. */
export async function takeFile(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  await link(from, to).catch(() => cp(from, to, { preserveTimestamps: true }));
}
