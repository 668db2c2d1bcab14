import { InputError } from "@quad-lora/base";
import type * as z from "zod";

/** Parses and checks a JSON file's text. @throws InputError naming file and key */
export function parseJsonFile<S extends z.ZodType>(file: string, text: string, schema: S): z.infer<S> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new InputError({ what: `is not valid JSON: ${(error as Error).message}`, file });
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new InputError({
    what: issue.message,
    file,
    ...(issue.path.length > 0 ? { where: issue.path.join(".") } : {}),
  });
}
