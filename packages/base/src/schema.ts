import * as z from "zod/v4/core";
import en from "zod/v4/locales/en.js";

/** A schema of zod, of its small build or of its large one. */
export type Schema = z.$ZodType;

/** A value that fits its schema, or the first thing that is wrong with it: message and path. */
export type Checked<S extends Schema> =
  | { readonly data: z.output<S>; readonly issue?: undefined }
  | { readonly data?: undefined; readonly issue: z.$ZodIssue };

// zod's small build has no messages of its own, and setting some for all of an application is not a library's to do.
const messages = { error: en().localeError };

/** Checks a value of unknown origin. Defaults are filled in. */
export function checkValue<S extends Schema>(schema: S, value: unknown): Checked<S> {
  const result = z.safeParse(schema, value, messages);
  return result.success ? { data: result.data } : { issue: result.error.issues[0] };
}
