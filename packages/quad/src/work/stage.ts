import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";

/** Changes whenever a stage's meaning changes, so that results of older programs are made again. */
const stageVersion = 1;

/** Where a stage's artefacts are, and whether they were there already. */
export interface StageResult {
  /** Folder with the stage's artefacts. */
  folder: string;
  /** Content hash of everything the artefacts depend on: later stages include it in theirs. */
  key: string;
  /** Whether an earlier run's result was used. */
  reused: boolean;
}

/**
 * Runs a stage unless its result is there already. A result is named after the hash of its inputs and appears under that
 * name only when complete: a build that was killed continues with the first stage that is missing.
 * @param inputs - everything the result depends on, as JSON: options, file hashes, keys of earlier stages
 * @param run - writes the artefacts into the folder it is given
 * @param isValid - for stages that write elsewhere: whether that is still what the folder says
 */
export async function runStage(
  work: string,
  name: string,
  inputs: unknown,
  run: (folder: string) => Promise<void>,
  isValid: (folder: string) => Promise<boolean> = async () => true,
): Promise<StageResult> {
  const key = createHash("sha256")
    .update(JSON.stringify([stageVersion, name, inputs]))
    .digest("hex");
  const folder = join(work, `${name}-${key.slice(0, 16)}`);
  if (existsSync(folder)) {
    if (await isValid(folder)) return { folder, key, reused: true };
    await rm(folder, { recursive: true });
  }
  const temporary = `${folder}.tmp`;
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true });
  try {
    await run(temporary);
    await rename(temporary, folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  return { folder, key, reused: false };
}

/** Removes results of the named stages that no longer belong to the current build. */
export async function removeStale(work: string, current: readonly StageResult[]): Promise<void> {
  const kept = new Set(current.map(({ folder }) => folder));
  for (const entry of await readdir(work).catch(() => [])) {
    const folder = join(work, entry);
    if (/-[0-9a-f]{16}(\.tmp)?$/.test(entry) && !kept.has(folder)) await rm(folder, { recursive: true, force: true });
  }
}
