import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, rmdir, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import type { z } from "zod";
import { writeFileAtomically } from "../files/atomic.ts";
import { syncFolder, syncTree } from "../files/sync.ts";
import { isAbandoned, removeAbandoned, temporaryName } from "../files/temporary.ts";

/** Changes whenever keys are made otherwise. */
const keyVersion = 2;
const leaseName = "in-use";
const checkpointFolder = "checkpoints";
const resultPattern = /-[0-9a-f]{16}(\.\w+)?$/;

/**
 * What a result is found under: SHA-256, hexadecimal, of what it is a result of.
 * @param kind - what makes it
 * @param version - of what makes it: another one gives other results
 * @param input - everything else that it depends on, as JSON
 */
export function keyOf(kind: string, version: number, input: unknown): string {
  return createHash("sha256")
    .update(JSON.stringify([keyVersion, kind, version, input]))
    .digest("hex");
}

/**
 * A folder of results under the hashes of their inputs. A result appears under its name only when it is complete; several
 * processes may work in one folder, each under temporary names of its own, and take over what another has finished.
 */
export class Results {
  readonly folder: string;
  #lease: string | undefined;

  constructor(folder: string) {
    this.folder = folder;
  }

  /** Where a result is or will be. @param name - for people to read; two results of one key and name are the same */
  path(name: string, key: string, extension = ""): string {
    return join(this.folder, `${fileSafe(name)}-${key.slice(0, 16)}${extension}`);
  }

  /** The folder of a result, or null where it is not there. */
  find(name: string, key: string): string | null {
    const path = this.path(name, key);
    return existsSync(path) ? path : null;
  }

  /**
   * A result that is a folder, made unless it is there.
   * @param write - writes everything into the folder it is given
   */
  async make(name: string, key: string, write: (temporary: string) => Promise<void>): Promise<string> {
    const path = this.path(name, key);
    if (existsSync(path)) return path;
    await removeAbandoned(this.folder, basename(path));
    const temporary = join(this.folder, temporaryName(basename(path)));
    await mkdir(temporary, { recursive: true });
    try {
      await write(temporary);
      await syncTree(temporary);
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { recursive: true, force: true });
      // The same inputs give the same result: another process was first, or has the same trouble.
      if (isTaken(error) && existsSync(path)) return path;
      throw error;
    }
    await syncFolder(this.folder);
    return path;
  }

  /** A result that is one file. @param write - writes it atomically */
  async file(name: string, key: string, extension: string, write: (path: string) => Promise<void>): Promise<string> {
    const path = this.path(name, key, extension);
    if (!existsSync(path)) await write(path);
    return path;
  }

  /** A result that is a JSON value; one that does not fit the schema is found anew. */
  async value<S extends z.ZodType>(
    name: string,
    key: string,
    schema: S,
    find: () => Promise<z.infer<S>>,
  ): Promise<z.infer<S>> {
    const path = this.path(name, key, ".json");
    if (existsSync(path)) {
      const known = schema.safeParse(parsed(await readFile(path, "utf8")));
      if (known.success) return known.data;
    }
    const found = await find();
    await writeFileAtomically(path, JSON.stringify(found));
    return found;
  }

  /** Folder for what an unfinished result needs to be gone on with. */
  checkpoints(name: string, key: string): string {
    return join(this.folder, checkpointFolder, basename(this.path(name, key)));
  }

  async removeCheckpoints(path: string): Promise<void> {
    await rm(path, { recursive: true, force: true });
    // Gone with the last of them.
    await rmdir(join(this.folder, checkpointFolder)).catch(() => undefined);
  }

  /** Removes a result, to be made again. */
  async remove(path: string): Promise<void> {
    // Under its name there is never half of it.
    const temporary = join(this.folder, temporaryName(basename(path)));
    await rename(path, temporary);
    await rm(temporary, { recursive: true, force: true });
  }

  /** Tells other processes which results this one works with: they are not removed until {@link release}, or its end. */
  async reserve(paths: Iterable<string>): Promise<void> {
    await mkdir(this.folder, { recursive: true });
    this.#lease ??= join(this.folder, temporaryName(leaseName));
    await writeFile(this.#lease, JSON.stringify([...paths].map((path) => basename(path))));
  }

  async release(): Promise<void> {
    if (this.#lease) await rm(this.#lease, { force: true });
    this.#lease = undefined;
  }

  /** Removes all results but these and those that other processes work with, and what killed processes left. */
  async keepOnly(paths: Iterable<string>): Promise<void> {
    await removeAbandoned(this.folder);
    const kept = new Set([...paths].map((path) => basename(path)));
    for (const name of await this.#reserved()) kept.add(name);
    for (const name of await readdir(this.folder).catch(() => [])) {
      if (resultPattern.test(name) && !kept.has(name)) await this.remove(join(this.folder, name));
    }
    const unfinished = join(this.folder, checkpointFolder);
    for (const name of await readdir(unfinished).catch(() => [])) {
      if (!kept.has(name)) await this.removeCheckpoints(join(unfinished, name));
    }
  }

  async #reserved(): Promise<string[]> {
    const names: string[] = [];
    for (const name of await readdir(this.folder).catch(() => [])) {
      const path = join(this.folder, name);
      if (!name.startsWith(`.${leaseName}.`) || path === this.#lease) continue;
      const info = await stat(path).catch(() => undefined);
      if (!info || isAbandoned(name, info.mtimeMs)) continue;
      const reserved = parsed(await readFile(path, "utf8").catch(() => "[]"));
      if (Array.isArray(reserved)) names.push(...reserved.map(String));
    }
    return names;
  }
}

/** Whether a folder could not be renamed because there is one of that name. */
function isTaken(error: unknown): boolean {
  return ["ENOTEMPTY", "EEXIST", "EPERM", "ENOENT"].includes((error as NodeJS.ErrnoException)?.code ?? "");
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Names of tasks and adapters may hold anything that a file's name may not. */
export function fileSafe(name: string): string {
  return name.replaceAll(/[^\w.-]+/g, "-");
}
