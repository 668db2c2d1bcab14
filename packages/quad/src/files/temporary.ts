import { createHash, randomBytes } from "node:crypto";
import { readdir, rm, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";

const host = createHash("sha256").update(hostname()).digest("hex").slice(0, 8);
const token = randomBytes(4).toString("hex");
const pattern = /\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\.[0-9a-z]+\.tmp$/;
/** On another machine a process cannot be looked for: what it has left alone for this long is given up, ms. */
const longestRest = 7 * 24 * 3_600_000;
let count = 0;

/** What ends the name of a folder that another is taking the place of: it may be the only whole one. */
export const replacedSuffix = ".replaced";

/**
 * A name for a file or folder that is not finished, used once: it starts with a dot and says which process of which machine
 * it belongs to, so that others neither write to it nor take it for a leftover.
 * @param of - name that it will get, or what it is for
 */
export function temporaryName(of: string): string {
  return `.${of}.${host}-${process.pid}-${token}.${(count++).toString(36)}.tmp`;
}

/**
 * Whether a name is one of {@link temporaryName} whose process has ended: nobody will finish it.
 * @param modified - when it was changed last, ms since 1970
 */
export function isAbandoned(name: string, modified: number): boolean {
  const [, otherHost, pid, otherToken] = pattern.exec(name) ?? [];
  if (otherHost === undefined) return false;
  if (otherHost !== host) return Date.now() - modified > longestRest;
  if (Number(pid) !== process.pid) return !isAlive(Number(pid));
  // In a container every run may have the same number: what is older than this process is from another.
  return otherToken !== token && modified < Date.now() - 1000 * process.uptime();
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it is there, and another user's.
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}

/** Removes what killed processes left unfinished in a folder. @param of - only what was to get this name */
export async function removeAbandoned(folder: string, of?: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    if (!pattern.test(name)) continue;
    const own = name.replace(pattern, "");
    if (of === undefined ? own.endsWith(replacedSuffix) : own !== `.${of}`) continue;
    const info = await stat(join(folder, name)).catch(() => undefined);
    if (info && isAbandoned(name, info.mtimeMs)) await rm(join(folder, name), { recursive: true, force: true });
  }
}
