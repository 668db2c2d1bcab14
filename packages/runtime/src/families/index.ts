import { InputError } from "@quad-lora/base";
import { z } from "zod";
import { type FolderFiles, readJson } from "../files.ts";
import type { Family } from "./family.ts";
import { flux } from "./flux.ts";
import { pixartAlpha, pixartSigma } from "./pixart.ts";
import { sana } from "./sana.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
import { stableDiffusion3 } from "./stable-diffusion-3.ts";

/** All families. */
export const families: readonly Family[] = [stableDiffusion, stableDiffusion3, flux, pixartAlpha, pixartSigma, sana];

const indexSchema = z.looseObject({ _class_name: z.string() });

/**
 * The family of a model folder, by its `model_index.json`; Stable Diffusion where there is none.
 * @throws InputError when the pipeline class belongs to none
 */
export async function readFamily(files: FolderFiles): Promise<Family> {
  const path = "model_index.json";
  if (!(await files.exists(path))) return stableDiffusion;
  const { _class_name: name } = await readJson(files, path, indexSchema);
  const family = families.find(({ pipelineClasses }) => pipelineClasses.includes(name));
  if (family) return family;
  throw new InputError({
    what: "this pipeline class is not supported",
    file: files.describe(path),
    where: "_class_name",
    expected: `one of ${families.flatMap(({ pipelineClasses }) => pipelineClasses).join(", ")}`,
    got: name,
  });
}
