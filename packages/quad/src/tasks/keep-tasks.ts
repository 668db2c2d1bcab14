import { existsSync } from "node:fs";
import { join } from "node:path";
import { tasksFileSchema, tasksOfAdapters } from "@quad-lora/runtime";
import { readRecord, writeRecord } from "../files/json.ts";

/** Rewrites a folder's `tasks.json` for the adapters that it has: asking for a task of any other would fail. */
export async function keepTasks(folder: string, adapters: readonly string[]): Promise<void> {
  const path = join(folder, "tasks.json");
  if (!existsSync(path)) return;
  await writeRecord(path, tasksOfAdapters(await readRecord(path, tasksFileSchema), adapters));
}
