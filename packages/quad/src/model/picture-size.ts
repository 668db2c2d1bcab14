import { InputError } from "@quad-lora/base";
import { loadModel } from "@quad-lora/onnx";
import { type PictureSize, pixelsPerLatent, readDefaultSize, readFamily, readVaeConfig } from "@quad-lora/runtime";
import { folderFiles } from "../files/folder-files.ts";
import { componentFile } from "./graph-files.ts";

/**
 * The size in pixels that a model folder or bundle draws when nothing says otherwise. Opens no graph in ONNX Runtime, which
 * takes seconds and gigabytes with a large model.
 * @throws InputError when the denoiser or a configuration is missing or broken
 */
export async function defaultSize(folder: string): Promise<PictureSize> {
  const files = folderFiles(folder);
  const family = await readFamily(files);
  const file = componentFile(folder, family.denoiser);
  const { inputs } = loadModel(file, { allowMissingExternalData: true }).graph;
  const sample = inputs.find(({ name }) => name === family.sample);
  if (sample?.type?.kind === "tensor" && sample.type.shape) return readDefaultSize(files, family, sample.type.shape);
  throw new InputError({
    what: "the graph has no input of a known shape for the latents",
    file,
    expected: family.sample,
  });
}

/**
 * The size in pixels to draw or train at: the wanted one, or the one that {@link defaultSize} says.
 * @param wanted - in pixels
 * @throws InputError when the autoencoder cannot encode pictures of the wanted size
 */
export async function pictureSize(
  folder: string,
  wanted?: readonly [height: number, width: number],
): Promise<PictureSize> {
  if (!wanted) return defaultSize(folder);
  const factor = pixelsPerLatent(await readVaeConfig(folderFiles(folder)));
  const [height, width] = wanted;
  if (height % factor === 0 && width % factor === 0) return { width, height };
  throw new InputError({
    what: "this size does not fit the model",
    expected: `multiples of ${factor}`,
    got: wanted.join("x"),
    fix: "Give another height and width.",
  });
}
