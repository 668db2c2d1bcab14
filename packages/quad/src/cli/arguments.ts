import { InputError } from "@quad-lora/base";
import { InvalidArgumentError } from "commander";
import type { z } from "zod";
import { withoutUndefined } from "../settings/without-undefined.ts";

/** Collects repeated `NAME=VALUE` options into a record. A bare NAME stands for NAME=NAME. */
export function collectPairs(text: string, previous: Record<string, string> = {}): Record<string, string> {
  const equals = text.indexOf("=");
  const name = equals < 0 ? text : text.slice(0, equals);
  const value = equals < 0 ? text : text.slice(equals + 1);
  if (!/^[\w.-]+$/.test(name) || value === "") {
    throw new InvalidArgumentError("Expected NAME=PATH; a name has letters, digits, dots, dashes and underscores.");
  }
  if (name === "base") throw new InvalidArgumentError('"base" is the model without an adapter; choose another name.');
  if (Object.hasOwn(previous, name)) throw new InvalidArgumentError(`"${name}" is given twice.`);
  return { ...previous, [name]: value };
}

/** Collects repeated `NAME=STRENGTH` options; a bare NAME means strength 1. */
export function collectStrengths(text: string, previous: Record<string, number> = {}): Record<string, number> {
  const [name, strength = "1", ...rest] = text.split("=");
  const value = Number(strength);
  if (name === "" || rest.length > 0 || strength === "" || !Number.isFinite(value)) {
    throw new InvalidArgumentError("Expected NAME=STRENGTH, for example flat=0.7.");
  }
  if (Object.hasOwn(previous, name)) throw new InvalidArgumentError(`"${name}" is given twice.`);
  return { ...previous, [name]: value };
}

export function parseNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("Expected a number.");
  return value;
}

export function parseCount(text: string): number {
  const value = parseNumber(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError("Expected a whole number, at least 1.");
  return value;
}

export function parseSeed(text: string): number {
  const value = parseNumber(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError("Expected a whole number, at least 0.");
  return value;
}

/**
 * A configuration's settings with options in place of some.
 * @throws InputError naming the option whose value the settings do not take
 */
export function withOptions<Schema extends z.ZodType>(
  schema: Schema,
  settings: object,
  options: Readonly<Record<string, unknown>>,
): z.infer<Schema> {
  const given = withoutUndefined(options);
  const result = schema.safeParse({ ...settings, ...given });
  if (result.success) return result.data;
  const [{ message, path }] = result.error.issues;
  const key = String(path[0]);
  const option = key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  throw new InputError({ what: message, where: `--${option}`, got: String(given[key]) });
}

/** `dynamic` or a rank. */
export function parseRank(text: string): { kind: "dynamic" } | { kind: "fixed"; rank: number } {
  return text === "dynamic" ? { kind: "dynamic" } : { kind: "fixed", rank: parseCount(text) };
}

/** `used`, `all` or a regular expression over `component.module` names. */
export function parseSlots(text: string): "used" | "all" | RegExp {
  if (text === "used" || text === "all") return text;
  try {
    return new RegExp(text);
  } catch (error) {
    throw new InvalidArgumentError(`Expected used, all or a regular expression: ${(error as Error).message}`);
  }
}
