import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { type Slot, type SlotsFile, slotsFileSchema } from "@quad-lora/runtime";
import { parseJsonFile } from "../model/model-folder.ts";

/** @throws InputError if the folder is no exposed folder */
export async function readSlots(exposed: string): Promise<SlotsFile> {
  const file = join(exposed, "slots.json");
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch {
    throw new InputError({
      what: "there is no slots.json",
      file: exposed,
      expected: "a folder written by quad expose",
      fix: "Run quad expose first.",
    });
  }
  return parseJsonFile(file, text, slotsFileSchema);
}

/** The graph inputs for factors, with their shapes; "rank" stands for the adapter's. */
export function* slotInputs(slots: readonly Slot[]): Generator<[name: string, shape: Slot["shapeA"]]> {
  for (const { inputA, shapeA, inputB, shapeB } of slots) {
    yield [inputA, shapeA];
    yield [inputB, shapeB];
  }
}

/** A factor's shape at one rank. */
export function factorDims(shape: Slot["shapeA"], rank: number): number[] {
  return shape.map((dim) => (dim === "rank" ? rank : dim));
}
