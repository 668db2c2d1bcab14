import { readdir, readFile, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { z } from "zod";
import { writeFileAtomically } from "../files/atomic.ts";
import { hashFile } from "../files/hash.ts";

const cacheSchema = z.record(
  z.string(),
  z.strictObject({
    size: z.number(),
    modified: z.number(),
    changed: z.number(),
    inode: z.number(),
    sha256: z.string(),
  }),
);

/**
 * Hashes of files, remembered by path, size, inode and times: gigabytes of weights are read once, not at every build.
 * Archives and rsync keep modification times; the change time is the file system's own.
 */
export class HashCache {
  readonly #path: string;
  #entries: z.infer<typeof cacheSchema> = {};

  private constructor(path: string) {
    this.#path = path;
  }

  static async open(path: string): Promise<HashCache> {
    const cache = new HashCache(path);
    try {
      cache.#entries = cacheSchema.parse(JSON.parse(await readFile(path, "utf8")));
    } catch {
      // A missing or damaged cache costs time, nothing else.
    }
    return cache;
  }

  /** SHA-256 of a file, or of all files below a folder by name. */
  async hash(path: string): Promise<unknown> {
    const info = await stat(path);
    if (info.isDirectory()) {
      const names = (await readdir(path)).filter((name) => !name.startsWith(".")).sort();
      return Promise.all(names.map(async (name) => [name, await this.hash(join(path, name))]));
    }
    const key = resolve(path);
    const known = this.#entries[key];
    const now = { size: info.size, modified: info.mtimeMs, changed: info.ctimeMs, inode: info.ino };
    const isSame = known && Object.entries(now).every(([key, value]) => known[key as keyof typeof now] === value);
    if (isSame) return known.sha256;
    const sha256 = await hashFile(path);
    this.#entries[key] = { ...now, sha256 };
    return sha256;
  }

  async save(): Promise<void> {
    await writeFileAtomically(this.#path, JSON.stringify(this.#entries));
  }
}
