// Entry point of the child processes of a `ProcessPool`.
import { InputError } from "@quad-lora/base";
import type { FromProcess, ToProcess } from "./processes.ts";
import { Shared } from "./shared.ts";
import type { StageContext } from "./stage.ts";

type Task = (input: unknown, context: Omit<StageContext, "checkpoints">) => Promise<unknown>;

const shared = new Shared();
const controller = new AbortController();
const interrupt = () => controller.abort(new Error("interrupted"));
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, interrupt);
// Without its parent nobody takes the result; what the task wrote for going on stays.
process.on("disconnect", () => {
  interrupt();
  void shared.dispose();
});

const send = (message: FromProcess) => new Promise<void>((resolve) => process.send?.(message, () => resolve()));

process.on("message", async ({ module, task, input }: ToProcess) => {
  try {
    const { tasks } = (await import(module)) as { tasks: Record<string, Task> };
    const result = await tasks[task](input, {
      signal: controller.signal,
      onProgress: (...progress) => void send({ kind: "progress", progress }),
      onWarning: (text) => void send({ kind: "warning", text }),
      share: await shared.for(task),
    });
    await send({ kind: "result", result });
  } catch (error) {
    const { message, stack } = error instanceof Error ? error : new Error(String(error));
    await send({ kind: "error", message, stack, ...(error instanceof InputError ? { problem: error.problem } : {}) });
  }
});
