import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, extname, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { createJiti } from "jiti";
import { z } from "zod";
import { parseJsonFile } from "../files/json.ts";
import { defaultTarget, targetNames } from "../targets/index.ts";
import { distillSchema } from "./distill.ts";
import { policySchema } from "./policy.ts";
import { tuneSchema } from "./tune.ts";

const caseSchema = z.strictObject({
  /** Default: the task's. */
  prompt: z.string().optional(),
  negativePrompt: z.string().optional(),
  image: z.string().optional(),
  mask: z.string().optional(),
  seed: z.int().nonnegative().optional(),
});

const evaluationCaseSchema = caseSchema.extend({
  /** What the input picture shows, for CLIP's directional similarity. */
  sourcePrompt: z.string().optional(),
});

const taskSchema = z.strictObject({
  /** Pictures to calibrate on: a few that are like those users will ask for. Seeds count up where they are left out. */
  calibration: z.array(caseSchema).min(1),
  /** Pictures to judge the result on, which calibration has not seen. */
  evaluation: z.array(evaluationCaseSchema).min(1).optional(),
  steps: z.int().positive().optional(),
  guidance: z.number().optional(),
});

/** `quad.config.json` or `quad.config.ts`: everything a bundle is made from. Paths are relative to the file. */
export const configSchema = z.strictObject({
  /** diffusers/Optimum ONNX folder. */
  model: z.string(),
  /** LoRA files or PEFT folders by task name. */
  adapters: z.record(z.string(), z.string()),
  /** Folder to write. */
  out: z.string(),
  /** Folder for intermediate results; default: `.quad` beside the configuration. */
  work: z.string().optional(),
  /** Tasks by name: adapters, and `base` for the model without one. */
  tasks: z.record(z.string(), taskSchema),
  target: z.enum(targetNames).default(defaultTarget),
  policy: policySchema.prefault({}),
  /** How the profile's 8-bit ranges are trained; off by default. */
  tune: tuneSchema.prefault({}),
  /** How adapters are tuned to the profile. */
  distill: distillSchema.prefault({}),
  observe: z
    .strictObject({
      stepGroups: z.int().positive().optional(),
      bins: z.int().min(64).optional(),
      sampled: z.int().min(256).optional(),
    })
    .default({}),
});
/** A configuration with its defaults filled in; from {@link loadConfig} with absolute paths. */
export type BuildConfig = z.infer<typeof configSchema>;
/** A configuration as people write it. */
export type BuildConfigInput = z.input<typeof configSchema>;

/** Types a configuration written in TypeScript. */
export function defineConfig(config: BuildConfigInput): BuildConfigInput {
  return config;
}

/**
 * Reads a configuration and makes its paths absolute.
 * @throws InputError naming the file and the key that does not fit
 */
export async function loadConfig(path: string): Promise<BuildConfig> {
  const file = resolve(path);
  if (!existsSync(file)) {
    throw new InputError({ what: "there is no such file", file: path, expected: "quad.config.json or quad.config.ts" });
  }
  const config = [".ts", ".mts", ".js", ".mjs"].includes(extname(file))
    ? checkConfig(path, await evaluate(file, path))
    : parseJsonFile(path, await readFile(file, "utf8"), configSchema);
  const from = (relative: string) => resolve(dirname(file), relative);
  const paths = (record: Record<string, string>) =>
    Object.fromEntries(Object.entries(record).map(([name, value]) => [name, from(value)]));
  const pictures = <Case extends { image?: string; mask?: string }>(given: Case): Case => ({
    ...given,
    ...(given.image ? { image: from(given.image) } : {}),
    ...(given.mask ? { mask: from(given.mask) } : {}),
  });
  for (const name of Object.keys(config.tasks)) {
    if (name === "base" || name in config.adapters) continue;
    throw new InputError({
      what: `task "${name}" has no adapter`,
      file: path,
      where: `tasks.${name}`,
      expected: `base or one of ${Object.keys(config.adapters).join(", ")}`,
    });
  }
  for (const name of Object.keys(config.adapters)) {
    if (name in config.tasks) continue;
    throw new InputError({
      what: `adapter "${name}" has nothing to calibrate on`,
      file: path,
      where: `tasks.${name}`,
      fix: "Add a task of that name with a few calibration prompts.",
    });
  }
  return {
    ...config,
    model: from(config.model),
    adapters: paths(config.adapters),
    out: from(config.out),
    work: from(config.work ?? ".quad"),
    tasks: Object.fromEntries(
      Object.entries(config.tasks).map(([name, task]) => [
        name,
        {
          ...task,
          calibration: task.calibration.map(pictures),
          ...(task.evaluation ? { evaluation: task.evaluation.map(pictures) } : {}),
        },
      ]),
    ),
  };
}

/** Runs the file's code. Nothing is kept on disk: another user could have made jiti's shared folder first. */
async function evaluate(file: string, shown: string): Promise<unknown> {
  try {
    return await createJiti(import.meta.url, { fsCache: false }).import(file, { default: true });
  } catch (error) {
    throw new InputError({ what: `cannot be evaluated: ${(error as Error).message.split("\n")[0]}`, file: shown });
  }
}

function checkConfig(path: string, value: unknown): BuildConfig {
  const result = configSchema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new InputError({ what: issue.message, file: path, where: issue.path.join(".") });
}
