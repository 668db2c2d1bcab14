import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { type FolderFiles, readJson } from "../files.ts";
import { controlNet, controlNetXl } from "./control-net.ts";
import type { Family } from "./family.ts";
import { flux } from "./flux.ts";
import { instructPix2Pix, instructPix2PixXl } from "./instruct-pix2pix.ts";
import { latentConsistency, latentConsistencyXl } from "./latent-consistency.ts";
import { pixartAlpha, pixartSigma } from "./pixart.ts";
import { sana } from "./sana.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
import { stableDiffusion3 } from "./stable-diffusion-3.ts";
import { stableDiffusionXl } from "./stable-diffusion-xl.ts";

/** All families; of several that fit, the one that requires most, then the first. */
export const families: readonly Family[] = [
  stableDiffusion,
  stableDiffusionXl,
  latentConsistency,
  latentConsistencyXl,
  instructPix2Pix,
  instructPix2PixXl,
  controlNet,
  controlNetXl,
  stableDiffusion3,
  flux,
  pixartAlpha,
  pixartSigma,
  sana,
];

const indexSchema = z.looseObject({ _class_name: z.optional(z.string()) });
const indexFile = "model_index.json";

/** What `model_index.json` says of a folder. */
export interface ModelIndex {
  /** Its content; empty where there is none. */
  readonly index: Readonly<Record<string, unknown>>;
  /** Families that the folder can belong to: those of its pipeline class, all where it names none. */
  readonly candidates: readonly Family[];
}

/**
 * Reads which families a folder can belong to; its denoiser's inputs then decide, see {@link chooseFamily}.
 * @throws InputError when its pipeline class belongs to no family
 */
export async function readModelIndex(files: FolderFiles): Promise<ModelIndex> {
  if (!(await files.exists(indexFile))) return { index: {}, candidates: families };
  const index = await readJson(files, indexFile, indexSchema);
  const { _class_name: name } = index;
  return { index, candidates: name === undefined ? families : familiesOfClass(name, files.describe(indexFile)) };
}

/**
 * The families of a pipeline class of diffusers: more than one where inputs of the denoiser decide.
 * @param file - that names the class, for the message
 * @throws InputError when it belongs to none
 */
export function familiesOfClass(pipelineClass: string, file: string): readonly Family[] {
  const plain = pipelineClass.replace(/^(Onnx|ORT)/, "");
  const found = families.filter(({ pipelineClasses }) => pipelineClasses.includes(plain));
  if (found.length > 0) return found;
  throw new InputError({
    what: "this pipeline class is not supported",
    file,
    where: "_class_name",
    expected: `one of ${[...new Set(families.flatMap(({ pipelineClasses }) => pipelineClasses))].join(", ")}`,
    got: pipelineClass,
  });
}

/** Folder of the denoising network: that of the candidates, among several the one that is there. */
export async function denoiserFolder(files: FolderFiles, candidates: readonly Family[]): Promise<string> {
  const folders = [...new Set(candidates.map(({ denoiser }) => denoiser))];
  for (const folder of folders) if (await files.exists(`${folder}/model.onnx`)) return folder;
  return folders[0];
}

/**
 * The family of a model.
 *
 * @param denoiser - folder of the denoising network
 * @param inputs - names of its inputs
 * @param file - of the network, for messages
 * @throws InputError when the network lacks inputs that each of the candidates needs
 */
export function chooseFamily(
  candidates: readonly Family[],
  denoiser: string,
  inputs: Iterable<string>,
  file: string,
): Family {
  const names = new Set(inputs);
  const fitting = candidates.filter(
    (family) => family.denoiser === denoiser && family.requires.every((name) => names.has(name)),
  );
  if (fitting.length > 0) {
    return fitting.reduce((best, family) => (family.requires.length > best.requires.length ? family : best));
  }
  throw new InputError({
    what: `the graph is not that of ${[...new Set(candidates.map(({ name }) => name))].join(" or ")}`,
    file,
    expected: `the inputs ${candidates.map(({ requires }) => requires.join(", ")).join("; or ")}`,
    got: [...names].slice(0, 8).join(", "),
  });
}
