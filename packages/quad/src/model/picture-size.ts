import { InputError } from "@quad-lora/base";
import { loadModel } from "@quad-lora/onnx";
import { type PictureSize, pixelsPerLatent, readDefaultSize, readVaeConfig } from "@quad-lora/runtime";
import { folderFiles } from "../files/folder-files.ts";
import { componentFile } from "./graph-files.ts";

/**
 * The size in pixels that a model folder or bundle draws when nothing says otherwise. Opens no graph in ONNX Runtime, which
 * takes seconds and gigabytes with a large model.
 * @throws InputError when the UNet or a configuration is missing or broken
 */
export async function defaultSize(folder: string): Promise<PictureSize> {
  const file = componentFile(folder, "unet");
  const sample = loadModel(file, { allowMissingExternalData: true }).graph.inputs.find(({ name }) => name === "sample");
  if (sample?.type?.kind === "tensor" && sample.type.shape)
    return readDefaultSize(folderFiles(folder), sample.type.shape);
  throw new InputError({ what: "the graph has no input of a known shape for the latents", file, expected: "sample" });
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
