import { link, mkdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { InputError } from "@quad-lora/base";
import { isAbandoned, removeAbandoned, temporaryName } from "./temporary.ts";

/** Others hold a lock for as long as a few renames and copies take. */
const longestWait = 60_000;
const pause = 20;
const lockName = "lock";

/**
 * Does something to a folder that no other process must do at the same time. The lock of a process that was killed is taken
 * over by the next.
 * @throws InputError if another process holds the lock for longer than a minute
 */
export async function withFolderLock<Result>(folder: string, work: () => Promise<Result>): Promise<Result> {
  const lock = lockOf(folder);
  await mkdir(dirname(folder), { recursive: true });
  await acquire(lock, folder);
  try {
    return await work();
  } finally {
    await rm(lock, { force: true });
  }
}

function lockOf(folder: string): string {
  return join(dirname(folder), `.${basename(folder)}.${lockName}`);
}

async function acquire(lock: string, folder: string): Promise<void> {
  const mark = temporaryName(lockName);
  const own = join(dirname(lock), mark);
  await writeFile(own, mark, { flag: "wx" });
  try {
    const until = Date.now() + longestWait;
    // A link, so that the lock never lacks the name of its owner.
    while (!(await isLinked(own, lock))) {
      if (await takeAway(lock)) continue;
      if (Date.now() > until) {
        throw new InputError({
          what: "another process is writing this folder",
          file: folder,
          fix: `Wait until it is done; if there is none, remove ${lock}.`,
        });
      }
      await setTimeout(pause);
    }
  } finally {
    await rm(own, { force: true });
  }
}

async function isLinked(own: string, lock: string): Promise<boolean> {
  try {
    await link(own, lock);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return false;
    // File systems without links: nobody else makes one there either.
    if (code !== "EPERM" && code !== "ENOTSUP" && code !== "EOPNOTSUPP") throw error;
    return writeFile(lock, basename(own), { flag: "wx" }).then(
      () => true,
      () => false,
    );
  }
}

/** Removes the lock that a process left which was killed, and what it left while it took it. */
export async function removeAbandonedLock(folder: string): Promise<void> {
  await takeAway(lockOf(folder));
  await removeAbandoned(dirname(folder), lockName);
}

/** Removes the lock of a process that has ended. Returns whether there may be none now. */
async function takeAway(lock: string): Promise<boolean> {
  const owner = await readFile(lock, "utf8").catch(() => null);
  if (owner === null) return true;
  const info = await stat(lock).catch(() => null);
  if (info === null) return true;
  if (!isAbandoned(owner, info.mtimeMs)) return false;
  const aside = join(dirname(lock), temporaryName(lockName));
  await rename(lock, aside).catch(() => undefined);
  // Another process may have taken it over in between: then that one's lock was moved, and goes back.
  const moved = await readFile(aside, "utf8").catch(() => owner);
  if (moved !== owner) await link(aside, lock).catch(() => undefined);
  await rm(aside, { force: true });
  return true;
}
