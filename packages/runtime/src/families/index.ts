import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { type FolderFiles, readJson } from "../files.ts";
import { controlNet, controlNetXl } from "./control-net.ts";
import type { Family } from "./family.ts";
import { instructPix2Pix, instructPix2PixXl } from "./instruct-pix2pix.ts";
import { latentConsistency, latentConsistencyXl } from "./latent-consistency.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
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
 * @throws InputError when its pipeline class belongs to no family, with what is supported
 */
export async function readModelIndex(files: FolderFiles): Promise<ModelIndex> {
  if (!(await files.exists(indexFile))) return { index: {}, candidates: families };
  const index = await readJson(files, indexFile, indexSchema);
  const { _class_name: name } = index;
  if (name === undefined) return { index, candidates: families };
  const candidates = familiesOfClass(name);
  if (candidates.length > 0) return { index, candidates };
  throw new InputError({
    what: `models of the class ${name} are not supported`,
    file: files.describe(indexFile),
    where: "_class_name",
    expected: `a model of one of the families ${families.map((family) => family.name).join(", ")}`,
    got: name,
  });
}

/** Families with this pipeline class; empty for a class that is not supported. */
export function familiesOfClass(name: string): readonly Family[] {
  const plain = name.replace(/^(Onnx|ORT)/, "");
  return families.filter(({ pipelineClasses }) => pipelineClasses.includes(plain));
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
