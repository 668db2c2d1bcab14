import { unetConfigSchema, type VaeConfig, vaeConfigSchema } from "./configs.ts";
import type { Family } from "./families/family.ts";
import { type FolderFiles, readJson } from "./files.ts";

/** Width and height in pixels. */
export interface PictureSize {
  width: number;
  height: number;
}

/** The autoencoder's configuration; Stable Diffusion's where the folder has none. */
export async function readVaeConfig(files: FolderFiles): Promise<VaeConfig> {
  const path = "vae_decoder/config.json";
  return (await files.exists(path)) ? readJson(files, path, vaeConfigSchema) : vaeConfigSchema.parse({});
}

/** Pixels per latent along one side; 8 where the configuration says nothing. */
export function pixelsPerLatent(config: VaeConfig): number {
  const resolutions = config.block_out_channels ?? config.encoder_block_out_channels;
  return resolutions ? 2 ** (resolutions.length - 1) : 8;
}

/**
 * The size that a model draws when nothing says otherwise: a graph's fixed one, else the one that its network was trained with.
 *
 * @param sampleShape - shape of the network's input for latents; unknown lengths are not numbers
 * @throws InputError when a configuration is broken
 */
export async function readDefaultSize(
  files: FolderFiles,
  family: Family,
  sampleShape: readonly unknown[],
): Promise<PictureSize> {
  const path = `${family.denoiser}/config.json`;
  const config = (await files.exists(path)) ? await readJson(files, path, unetConfigSchema) : {};
  const size = config.sample_size ?? family.defaults.size;
  const [height, width] = typeof size === "number" ? [size, size] : size;
  const [, , fixedHeight, fixedWidth] = family.layout ? [] : sampleShape;
  const factor = pixelsPerLatent(await readVaeConfig(files));
  return {
    width: factor * (typeof fixedWidth === "number" ? fixedWidth : width),
    height: factor * (typeof fixedHeight === "number" ? fixedHeight : height),
  };
}
