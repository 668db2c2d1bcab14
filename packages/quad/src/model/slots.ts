import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { type SlotsFile, slotsFileSchema } from "@quad-lora/runtime";
import { readRecord } from "../files/json.ts";

/** @throws InputError if the folder is not an exposed folder */
export async function readSlots(exposed: string): Promise<SlotsFile> {
  const file = join(exposed, "slots.json");
  return readRecord(file, slotsFileSchema, "a folder written by quad expose", "Run quad expose first.");
}

/** The denoiser's name and slots in an exposed folder. */
export async function denoiserSlots(
  exposed: string,
): Promise<{ component: "unet" | "transformer"; slots: SlotsFile["components"][string]; file: SlotsFile }> {
  const file = await readSlots(exposed);
  for (const component of ["unet", "transformer"] as const) {
    const slots = file.components[component];
    if (slots) return { component, slots, file };
  }
  throw new InputError({
    what: "the denoiser has no adapter slots",
    file: join(exposed, "slots.json"),
    fix: "Expose the model with at least one adapter for its denoiser.",
  });
}
