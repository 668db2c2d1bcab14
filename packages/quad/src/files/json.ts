import { checkValue, InputError, type Schema } from "@quad-lora/base";
import type { output } from "zod/v4/core";

/** Parses and checks a JSON file's text. @throws InputError naming file and key */
export function parseJsonFile<S extends Schema>(file: string, text: string, schema: S): output<S> {
  let value: unknown;
  try {
    value = JSON.parse(text);
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
