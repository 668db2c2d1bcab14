import { denoiserConfigSchema, type VaeConfig, vaeConfigSchema } from "./configs.ts";
import { type FolderFiles, readJson } from "./files.ts";

/** What a family says of sizes. */
interface SizedFamily {
  /** Folder of the denoiser. */
  readonly denoiser: string;
  /** In latents, where the denoiser's configuration has none. */
  readonly defaults: { readonly size: number };
  /** Of families whose latents are not `[channels, height, width]` but `[tokens, features]`. */
  readonly layout?: unknown;
  /** Latents per side that become one token. */
  readonly patch: number;
}

/** Width and height in pixels. */
export interface PictureSize {
  width: number;
  height: number;
}

/** The autoencoder's configuration; Stable Diffusion's where the folder has none. */
export async function readVaeConfig(files: FolderFiles): Promise<VaeConfig> {
  for (const path of ["vae_decoder/config.json", "vae_encoder/config.json"]) {
    if (await files.exists(path)) return readJson(files, path, vaeConfigSchema);
  }
  return vaeConfigSchema.parse({});
}

/** Pixels per latent along one side; 8 where the configuration says nothing. */
export function pixelsPerLatent(config: VaeConfig): number {
  const resolutions = config.block_out_channels ?? config.encoder_block_out_channels;
  return resolutions ? 2 ** (resolutions.length - 1) : 8;
}

/**
 * The size that a model draws when nothing says otherwise: a graph's fixed one, else the one that its denoiser was trained with.
 *
 * @param sampleShape - shape of the denoiser's input for latents; unknown lengths are not numbers
 * @throws InputError when a configuration is broken
 */
export async function readDefaultSize(
  files: FolderFiles,
  family: SizedFamily,
  sampleShape: readonly unknown[],
): Promise<PictureSize> {
  const { denoiser, defaults, layout, patch } = family;
  const path = `${denoiser}/config.json`;
  const config = (await files.exists(path)) ? await readJson(files, path, denoiserConfigSchema) : {};
  const size = config.sample_size ?? defaults.size;
  const [height, width] = typeof size === "number" ? [size, size] : size;
  const [fixedHeight, fixedWidth] = layout
    ? sizeOfTokens(sampleShape[1], [height, width], patch)
    : sampleShape.slice(2);
  const factor = pixelsPerLatent(await readVaeConfig(files));
  return {
    width: factor * (typeof fixedWidth === "number" ? fixedWidth : width),
    height: factor * (typeof fixedHeight === "number" ? fixedHeight : height),
  };
}

/** Height and width of so many tokens: the wanted ones where they make as many, else a square's. */
function sizeOfTokens(tokens: unknown, wanted: readonly [number, number], patch: number): readonly number[] {
  const [height, width] = wanted;
  if (typeof tokens !== "number") return wanted;
  const side = Math.sqrt(tokens);
  if (height * width === tokens * patch ** 2 || !Number.isInteger(side)) return wanted;
  return [side * patch, side * patch];
}
