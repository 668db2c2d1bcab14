import { expect, test } from "vitest";
import { adaptersOfTask, type TasksFile, tasksFileSchema, tasksOfAdapters } from "./tasks.ts";

test("a task without adapter selects the one of its name where there is one, else none", () => {
  expect(adaptersOfTask("flat", {}, ["flat", "sketch"])).toEqual({ flat: 1 });
  expect(adaptersOfTask("erase", {}, ["flat"])).toEqual({});
  expect(adaptersOfTask("base", {}, ["flat"])).toEqual({});
});

test("what a task says is taken at its word", () => {
  expect(adaptersOfTask("flat", { adapter: null }, ["flat"])).toEqual({});
  expect(adaptersOfTask("portrait", { adapter: "flat" }, ["portrait"])).toEqual({ flat: 1 });
  expect(adaptersOfTask("both", { adapter: { flat: 0.7, sketch: -0.5 } }, [])).toEqual({ flat: 0.7, sketch: -0.5 });
});

test("a folder offers the tasks whose adapters it has, and each says which these are", () => {
  const file: TasksFile = tasksFileSchema.parse({
    format: "quad-tasks",
    version: 1,
    tasks: {
      base: { adapter: null },
      flat: { steps: 4 },
      plain: { steps: 8 },
      drawn: { adapter: "sketch" },
      both: { adapter: { flat: 1, sketch: 1 } },
    },
  });
  const kept = tasksOfAdapters(file, ["flat"]);
  expect(kept.tasks).toEqual({ base: { adapter: null }, flat: { adapter: "flat", steps: 4 }, plain: { steps: 8 } });
  expect(tasksOfAdapters(kept, ["flat"])).toEqual(kept);
  // Whatever is kept selects, where only these adapters are, what it selected before.
  for (const [name, task] of Object.entries(kept.tasks)) {
    expect(adaptersOfTask(name, task, ["flat"])).toEqual(adaptersOfTask(name, file.tasks[name], ["flat"]));
  }
  // The adapter's file is lost: the task still asks for it.
  expect(adaptersOfTask("flat", kept.tasks.flat, [])).toEqual({ flat: 1 });
});
