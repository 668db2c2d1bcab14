import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { type FolderFiles, readJson } from "../files.ts";
import { controlNet } from "./controlnet.ts";
import type { Family } from "./family.ts";
import { flux } from "./flux.ts";
import { instructPix2Pix } from "./instruct-pix2pix.ts";
import { latentConsistency } from "./latent-consistency.ts";
import { pixartAlpha, pixartSigma } from "./pixart.ts";
import { sana } from "./sana.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
import { stableDiffusion3 } from "./stable-diffusion-3.ts";
import { stableDiffusionXl } from "./stable-diffusion-xl.ts";

/** All families. */
export const families: readonly Family[] = [
  stableDiffusion,
  stableDiffusionXl,
  latentConsistency,
  instructPix2Pix,
  controlNet,
  stableDiffusion3,
  flux,
  pixartAlpha,
  pixartSigma,
  sana,
];

const indexSchema = z.looseObject({ _class_name: z.string() });

/**
 * The family of a model folder, by its `model_index.json`; Stable Diffusion where there is none.
 * @throws InputError when the pipeline class belongs to none
 */
export async function readFamily(files: FolderFiles): Promise<Family> {
  const path = "model_index.json";
  if (!(await files.exists(path))) return stableDiffusion;
  const { _class_name: name } = await readJson(files, path, indexSchema);
  return familyOfClass(name, files.describe(path));
}

/**
 * The family of a pipeline class of diffusers.
 * @param file - that names the class, for the message
 * @throws InputError when it belongs to none
 */
export function familyOfClass(pipelineClass: string, file: string): Family {
  const family = families.find(({ pipelineClasses }) => pipelineClasses.includes(pipelineClass));
  if (family) return family;
  throw new InputError({
    what: "this pipeline class is not supported",
    file,
    where: "_class_name",
    expected: `one of ${families.flatMap(({ pipelineClasses }) => pipelineClasses).join(", ")}`,
    got: pipelineClass,
  });
}
