import { realpathSync } from "node:fs";
import { isAbsolute, relative, sep } from "node:path";

/** Whether a relative path leads out of the folder that it starts from. */
export function leavesFolder(path: string): boolean {
  return path === ".." || path.startsWith(`..${sep}`) || isAbsolute(path);
}

/**
 * Whether a path leads out of its folder through links. The cache of the Hugging Face Hub is the exception: there, files of a
 * snapshot are links to the repository's own blobs, which are named by their hashes.
 * @throws Error of the file system where the path or a link's target does not exist
 */
export function linkLeavesFolder(folder: string, path: string): boolean {
  const root = realpathSync(folder);
  const target = realpathSync(path);
  return leavesFolder(relative(root, target)) && !isOwnBlob(root, target);
}

/** `.../models--OWNER--NAME/snapshots/REVISION/...` and `.../models--OWNER--NAME/blobs/HASH`. */
function isOwnBlob(folder: string, target: string): boolean {
  const parts = folder.split(sep);
  const snapshots = parts.findIndex(
    (part, i) => part === "snapshots" && /^(models|datasets|spaces)--/.test(parts[i - 1]),
  );
  if (snapshots < 0) return false;
  const [blob, ...deeper] = relative([...parts.slice(0, snapshots), "blobs"].join(sep), target).split(sep);
  return deeper.length === 0 && /^([0-9a-f]{40}|[0-9a-f]{64})$/.test(blob);
}
