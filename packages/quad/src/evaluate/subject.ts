import { InputError } from "@quad-lora/base";
import type { Pipeline, Task } from "@quad-lora/runtime";
import { openFolder } from "../model/open-folder.ts";
import { adaptersOf, heldOutCases, type PreparedCase, prepareCase, sayingAdapters } from "./cases.ts";
import type { EvaluateOptions } from "./options.ts";

/** A folder under evaluation: what it is asked to draw. */
export interface Subject {
  folder: string;
  /** Adapters that the folder has. */
  adapters: string[];
  /** Pixels of a picture. */
  size: Pipeline["defaultSize"];
  /** Definitions of the tasks that are evaluated. */
  tasks: Map<string, Readonly<Task>>;
  /** Held-out cases of every task, their pictures read. */
  cases: Map<string, PreparedCase[]>;
}

/**
 * The tasks of a folder that are to be evaluated, and their held-out cases.
 * @param notes - takes what is left out, and what has to be known to read the figures
 * @throws InputError for a task that the folder does not have
 */
export async function openSubject(folder: string, options: EvaluateOptions, notes: string[]): Promise<Subject> {
  const { config, pictures } = options;
  const { definitions, adapters, size, usual } = await readFolder(folder);
  const tasks = new Map<string, Readonly<Task>>();
  const cases = new Map<string, PreparedCase[]>();
  for (const name of options.tasks ?? definitions.keys()) {
    const definition = definitions.get(name);
    if (!definition) {
      const expected = `one of ${[...definitions.keys()].join(", ")}`;
      throw new InputError({ what: `no task ${name}`, file: folder, expected });
    }
    const settings = config.tasks[name];
    if (!settings) {
      notes.push(`Task ${name} is left out: the configuration has no cases for it (tasks.${name}.evaluation).`);
      continue;
    }
    const { cases: chosen, note } = heldOutCases(settings, pictures);
    if (note) notes.push(`Task ${name} ${note}.`);
    tasks.set(name, definition);
    const defaults = { ...usual, ...definition };
    cases.set(name, await Promise.all(chosen.map((one) => prepareCase(name, settings, one, defaults, size))));
  }
  return { folder, adapters, size, tasks, cases };
}

async function readFolder(folder: string) {
  const pipeline = await openFolder(folder);
  try {
    const { adapters, defaultSize: size } = pipeline;
    const definitions = new Map(
      pipeline.tasks.map((name) => [name, sayingAdapters(name, pipeline.task(name), adapters)]),
    );
    const { steps, guidance } = pipeline.family.defaults;
    return { definitions, adapters, size, usual: { steps, guidance } };
  } finally {
    await pipeline.dispose();
  }
}

/**
 * Leaves out the tasks whose adapters have no original to compare with.
 * @param missing - adapters without an original
 * @throws InputError if no task is left
 */
export function leaveOutTasks({ folder, tasks, cases }: Subject, missing: readonly string[], notes: string[]): void {
  for (const [name, task] of [...tasks]) {
    const lost = Object.keys(adaptersOf(name, task)).find((adapter) => missing.includes(adapter));
    if (lost === undefined) continue;
    const remedy = `the original of adapter "${lost}" was not found; give --adapter ${lost}=FILE`;
    notes.push(`Task ${name} is left out: ${remedy}.`);
    tasks.delete(name);
    cases.delete(name);
  }
  if (tasks.size > 0) return;
  throw new InputError({ what: "no task is left to evaluate", file: folder, got: notes.join(" ") });
}
