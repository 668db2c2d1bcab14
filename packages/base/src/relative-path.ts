import { InputError } from "./errors.ts";

/**
 * The door for names of files that stand in a file from outside (a manifest, tasks, records, an index of weights): a path
 * inside the folder that the file belongs to, with `/` between its parts. Links are for whoever opens the file to judge.
 * @param path - as the file has it
 * @param source - the file that holds the name, and the key, for the message
 * @returns the same path
 * @throws InputError for a path that is empty, absolute, or leaves the folder, and for names no file system takes
 */
export function checkRelativePath(path: string, source: { file?: string; where?: string } = {}): string {
  const parts = path.split("/");
  const isInside =
    path.length <= 1024 &&
    !/[\\\p{Cc}]/u.test(path) &&
    !/^[A-Za-z]:/.test(path) &&
    parts.every((part) => part !== "" && part !== "." && part !== "..");
  if (isInside) return path;
  throw new InputError({
    what: "names a file outside of its folder, or none at all",
    ...source,
    expected: "a path inside the folder, such as unet/model.onnx",
    got: JSON.stringify(path.length > 200 ? `${path.slice(0, 200)}...` : path),
    fix: "Do not use this file unless you trust where it comes from: no tool writes such names.",
  });
}
