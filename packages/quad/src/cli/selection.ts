import { InputError } from "@quad-lora/base";
import type { Selection } from "@quad-lora/runtime";
import { readSafetensorsTensor } from "../files/tensors.ts";

/** What `--task` and `--use` together select. */
export function selectionOf(options: { task?: string; use?: Record<string, number> }): Selection {
  const uses = Object.keys(options.use ?? {}).length > 0 ? options.use : undefined;
  if (options.task && uses) {
    throw new InputError({ what: "--task and --use exclude each other", fix: "Use one of them." });
  }
  return uses ?? options.task ?? "base";
}

/** The one tensor of a start-noise file. */
export async function readLatents(path: string): Promise<Float32Array> {
  return readSafetensorsTensor(path, ["latents", "start", "noise"]);
}
