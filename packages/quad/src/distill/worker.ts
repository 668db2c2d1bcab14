// Entry point of a child process that distils one adapter: ONNX Runtime's runs block the process they are in.
import { InputError } from "@quad-lora/base";
import { type DistillAdapterOptions, distillAdapter } from "./distill-adapter.ts";
import type { WorkerReply } from "./distill-adapters.ts";

const controller = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => controller.abort(new Error("interrupted")));
// Without its parent nobody takes the result; the checkpoint stays.
process.on("disconnect", () => controller.abort(new Error("interrupted")));

const send = (reply: WorkerReply) => new Promise<void>((resolve) => process.send?.(reply, () => resolve()));

process.once("message", async (options: Omit<DistillAdapterOptions, "signal" | "onStep">) => {
  try {
    const result = await distillAdapter({
      ...options,
      signal: controller.signal,
      onStep: (progress) => void send({ kind: "progress", progress }),
    });
    await send({ kind: "result", result });
  } catch (error) {
    await send({
      kind: "error",
      message: error instanceof Error ? (error.stack ?? error.message) : String(error),
      ...(error instanceof InputError ? { problem: error.problem } : {}),
    });
  }
  process.disconnect?.();
});
