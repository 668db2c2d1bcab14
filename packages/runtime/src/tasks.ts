import * as z from "zod/mini";

/** Defaults of one task. */
export const taskSchema = z.strictObject({
  /** Adapter at strength 1, adapters with their strengths, or none; what a missing one means says {@link adaptersOfTask}. */
  adapter: z.optional(z.union([z.string(), z.record(z.string(), z.number()), z.null()])),
  /** Classifier-free guidance; off at and below 1. */
  guidance: z.optional(z.number()),
  steps: z.optional(z.int().check(z.positive())),
  /** Used when a call gives no prompt. */
  prompt: z.optional(z.string()),
  negativePrompt: z.optional(z.string()),
  /** What a call has to bring. */
  inputs: z.optional(z.array(z.enum(["prompt", "image", "mask"]))),
  description: z.optional(z.string()),
});
/** Defaults of one task. */
export type Task = z.infer<typeof taskSchema>;

/** `tasks.json`: named defaults for generation. */
export const tasksFileSchema = z.strictObject({
  format: z.literal("quad-tasks"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  tasks: z.record(z.string(), taskSchema),
});
/** Content of `tasks.json`. */
export type TasksFile = z.infer<typeof tasksFileSchema>;

/**
 * The adapters that a task selects, with their strengths. A task that names none selects the adapter of its own name at
 * strength 1 where there is one, else the model as it is; null always selects the model as it is.
 * @param name - of the task
 * @param known - names of the adapters that there are; a task's own words are taken at their word, there or not
 */
export function adaptersOfTask(
  name: string,
  { adapter }: Pick<Readonly<Task>, "adapter">,
  known: Iterable<string>,
): Record<string, number> {
  if (adapter === undefined) return [...known].includes(name) ? { [name]: 1 } : {};
  if (adapter === null) return {};
  return typeof adapter === "string" ? { [adapter]: 1 } : { ...adapter };
}

/**
 * The tasks whose adapters are all among the given ones, each saying which these are: what a folder that holds these adapters
 * can offer. A file that is lost later is then missed, and not taken for a task without adapter.
 */
export function tasksOfAdapters(file: TasksFile, adapters: readonly string[]): TasksFile {
  const tasks = Object.entries(file.tasks)
    .filter(([name, task]) => Object.keys(adaptersOfTask(name, task, adapters)).every((one) => adapters.includes(one)))
    .map(([name, task]) => {
      const isMeant = task.adapter === undefined && adapters.includes(name);
      return [name, isMeant ? { adapter: name, ...task } : task] as const;
    });
  return { ...file, tasks: Object.fromEntries(tasks) };
}
