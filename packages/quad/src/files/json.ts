import { readFile } from "node:fs/promises";
import { checkValue, InputError, type Schema } from "@quad-lora/base";
import type { output } from "zod/v4/core";
import { writeFileAtomically } from "./atomic.ts";

/** Parses and checks a JSON file's text; a byte order mark is skipped. @throws InputError naming file and key */
export function parseJsonFile<S extends Schema>(file: string, text: string, schema: S): output<S> {
  let value: unknown;
  try {
    value = JSON.parse(text.replace(/^\ufeff/, ""));
  } catch (error) {
    throw new InputError({ what: `is not valid JSON: ${(error as Error).message}`, file });
  }
  const { data, issue } = checkValue(schema, value);
  if (!issue) return data;
  throw new InputError({
    what: issue.message,
    file,
    ...(issue.path.length > 0 ? { where: issue.path.join(".") } : {}),
  });
}

/**
 * Reads and checks a JSON file that has to be there.
 * @param madeBy - what is expected, and what writes it: `a profile written by quad profile`
 * @param fix - what to do where there is none
 * @throws InputError if the file is missing, broken, or something else
 */
export async function readRecord<S extends Schema>(
  path: string,
  schema: S,
  madeBy?: string,
  fix?: string,
): Promise<output<S>> {
  return parseJsonFile(path, await readText(path, madeBy, fix), schema);
}

/** A text file that has to be there; parameters as of {@link readRecord}. @throws InputError if it cannot be read */
export async function readText(path: string, madeBy?: string, fix?: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const what = code === "ENOENT" || code === "ENOTDIR" ? "there is no such file" : "the file cannot be read";
    throw new InputError({ what, file: path, expected: madeBy, fix });
  }
}

/** Writes a value as JSON, atomically. */
export async function writeRecord(path: string, value: unknown): Promise<void> {
  await writeFileAtomically(path, recordText(value));
}

/** A value as {@link writeRecord} writes it. */
export function recordText(value: unknown): string {
  return `${JSON.stringify(value, null, 1)}\n`;
}
