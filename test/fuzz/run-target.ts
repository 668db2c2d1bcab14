import { InputError } from "@quad-lora/base";
import { mutate } from "./mutate.ts";
import type { FuzzTarget } from "./targets.ts";

/** What a reader made of one damaged file. */
export interface FuzzOutcome {
  seed: number;
  kind: "read" | "refused" | "fault";
  milliseconds: number;
  /** The error of a fault, and its stack. */
  fault?: string;
}

/** The damaged file of one seed. */
export function damaged({ corpus, isText }: FuzzTarget, seed: number): Uint8Array {
  return mutate(corpus[seed % corpus.length], isText, seed);
}

/** Reads the damaged file of one seed. Anything but a result or an `InputError` of one line is a fault. */
export async function fuzzOnce(
  target: FuzzTarget,
  seed: number,
  contents = damaged(target, seed),
): Promise<FuzzOutcome> {
  const started = performance.now();
  const ended = (kind: FuzzOutcome["kind"], fault?: string): FuzzOutcome => {
    return { seed, kind, milliseconds: performance.now() - started, fault };
  };
  try {
    await target.read(contents);
    const polluted = Object.keys(Object.prototype);
    return polluted.length > 0 ? ended("fault", `Object.prototype has ${polluted}`) : ended("read");
  } catch (error) {
    if (error instanceof InputError) {
      return /\p{Cc}/u.test(error.message)
        ? ended("fault", `control characters in: ${error.message}`)
        : ended("refused");
    }
    return ended("fault", error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
}
