import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { keepTasks } from "./keep-tasks.ts";

const folder = temporaryFolder();

test("tasks stay whose adapters are all there", async () => {
  const path = join(folder, "tasks.json");
  await keepTasks(folder, ["flat"]);
  const tasks = {
    base: { adapter: null },
    flat: { adapter: "flat", steps: 4 },
    sketch: { adapter: "sketch" },
    both: { adapter: { flat: 0.5, sketch: 0.5 } },
    weak: { adapter: { flat: 0.5 } },
  };
  writeFileSync(path, JSON.stringify({ format: "quad-tasks", version: 1, tasks }));
  await keepTasks(folder, ["flat"]);
  const { tasks: kept } = JSON.parse(readFileSync(path, "utf8"));
  expect(kept).toEqual({ base: tasks.base, flat: tasks.flat, weak: tasks.weak });
});
