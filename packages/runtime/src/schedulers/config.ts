import { checkValue, InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import type { SchedulerDefinition } from "./definition.ts";
import type { PredictionType } from "./scheduler.ts";

/** What every scheduler's configuration has. */
interface CommonConfig {
  readonly _class_name: string;
  readonly num_train_timesteps: number;
  readonly prediction_type: PredictionType;
}

/** A checked `scheduler_config.json` with the defaults of its class filled in: the common keys, and those of the class. */
export type SchedulerConfig = CommonConfig & Readonly<Record<string, unknown>>;

/**
 * Reads the text of a `scheduler_config.json`. Python writes infinities as bare words, which JSON does not allow
 * (`"lambda_min_clipped": -Infinity` is common); they become numbers here and `NaN` becomes null.
 * @throws InputError when the text is not JSON
 */
export function parseSchedulerConfigText(text: string, file?: string): unknown {
  const standard = text.replace(/"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b/g, (token) => {
    if (token.startsWith('"')) return token;
    if (token === "NaN") return "null";
    return token.startsWith("-") ? "-1e999" : "1e999";
  });
  try {
    return JSON.parse(standard);
  } catch (error) {
    throw new InputError({ what: `not JSON: ${(error as Error).message}`, file, fix: "Restore the file." });
  }
}

/** A configuration and the definition that it belongs to; see `parseSchedulerConfig`. */
export function checkConfig(
  definitions: readonly SchedulerDefinition[],
  config: unknown,
  file: string | undefined,
): { definition: SchedulerDefinition; config: SchedulerConfig } {
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new InputError({
      what: "scheduler configuration is not an object",
      file,
      expected: "the content of scheduler_config.json",
      got: Array.isArray(config) ? "an array" : String(config),
    });
  }
  const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null && value !== undefined));
  const name = given._class_name;
  const definition = definitions.find(({ classes }) => classes.includes(name as string));
  if (!definition) {
    throw new InputError({
      what: "unknown scheduler class",
      file,
      where: "_class_name",
      expected: `one of ${definitions.flatMap(({ classes }) => classes).join(", ")}`,
      got: JSON.stringify(name) ?? "nothing",
    });
  }
  refuseUnread(definition, definitions, given, file);
  const { data, issue } = checkValue(z.object(definition.options), given);
  if (issue) throw wrongValue(issue, given, file);
  checkBetas(data, file);
  return {
    definition,
    config: { ...(data as Omit<CommonConfig, "_class_name">), _class_name: name as string },
  };
}

/** Options that change the picture when switched on, whichever class they stand in. */
const changesPicture = /^(use_.*|clip_sample|rescale_betas_zero_snr|stochastic_sampling|thresholding)$/;

function refuseUnread(
  { options, inert }: SchedulerDefinition,
  definitions: readonly SchedulerDefinition[],
  given: Record<string, unknown>,
  file: string | undefined,
): void {
  const known = new Set(
    definitions.flatMap((definition) => [...Object.keys(definition.options), ...(definition.inert ?? [])]),
  );
  for (const [key, value] of Object.entries(given)) {
    if (Object.hasOwn(options, key) || inert?.includes(key) || key.startsWith("_") || value === false) continue;
    if (changesPicture.test(key)) {
      throw new InputError({
        what: `${given._class_name} does not implement ${key} here`,
        file,
        where: key,
        expected: "false",
        got: JSON.stringify(value),
        fix: "Switch it off or choose another scheduler class.",
      });
    }
    if (known.has(key)) continue;
    throw new InputError({
      what: "unknown scheduler option",
      file,
      where: key,
      got: JSON.stringify(value),
      fix: "Remove it if the scheduler does not need it.",
    });
  }
}

function wrongValue(issue: z.core.$ZodIssue, given: Record<string, unknown>, file: string | undefined): InputError {
  const [key] = issue.path.map(String);
  const place = { file, where: issue.path.join("."), got: JSON.stringify(given[key]) ?? "nothing" };
  const implemented = implementedValues(issue);
  if (!implemented) return new InputError({ what: issue.message, ...place });
  return new InputError({
    what: `${given._class_name} does not implement this ${key} here`,
    ...place,
    expected: implemented,
    fix: "Change it or choose another scheduler class.",
  });
}

/** What may stand in place of a value that is of the right type and not implemented. */
function implementedValues(issue: z.core.$ZodIssue): string | undefined {
  if (issue.code === "invalid_value") return issue.values.map((value) => JSON.stringify(value)).join(" or ");
  return issue.code === "invalid_type" && issue.expected === "undefined" ? "null" : undefined;
}

function checkBetas(config: Record<string, unknown>, file: string | undefined): void {
  const { trained_betas: betas, num_train_timesteps: count } = config;
  if (!Array.isArray(betas) || betas.length === count) return;
  throw new InputError({
    what: "wrong number of trained betas",
    file,
    where: "trained_betas",
    expected: `${count} (num_train_timesteps)`,
    got: String(betas.length),
  });
}
