import type { StageOptions } from "../work/progress.ts";
import type { Terminal } from "./terminal.ts";

/** Thrown through long work when the user presses Ctrl-C. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
}

/** A signal that the first Ctrl-C (or SIGTERM) sets off, so that work can end tidily; the second ends the process at once. */
export function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      controller.abort(new Interrupted(`interrupted by ${signal}`));
      process.once(signal, () => process.exit(130));
    });
  }
  return controller.signal;
}

/** What a command hands on to the work it starts: Ctrl-C stops it, and the terminal shows how far it is. */
export function stageOptions({ progress }: Terminal): Required<StageOptions> {
  return { signal: interruptSignal(), onProgress: progress };
}
