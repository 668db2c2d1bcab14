import { existsSync } from "node:fs";
import { InputError } from "@quad-lora/base";
import type { Mask, RgbImage } from "@quad-lora/runtime";
import sharp, { type Sharp } from "sharp";
import { writeFileAtomically } from "./atomic.ts";

/** Size in pixels that a picture is brought to. */
export interface ImageSize {
  width: number;
  height: number;
}

/**
 * Reads a PNG, JPEG, WebP, GIF (its first frame), AVIF or TIFF: sRGB, transparency on white. With `size` it is scaled to cover it and
 * cropped around its centre.
 * @throws InputError if the file is missing or no picture
 */
export async function readImage(path: string, size?: ImageSize): Promise<RgbImage> {
  const { data, info } = await decode(path, (picture) =>
    (size ? picture.resize(size.width, size.height, { fit: "cover" }) : picture)
      .flatten({ background: "#ffffff" })
      .toColourspace("srgb")
      .removeAlpha(),
  );
  return { width: info.width, height: info.height, data: toRgb(data, info.channels) };
}

/**
 * Reads a mask: white (over half) is where to paint. Scaled without smoothing.
 * @throws InputError if the file is missing or no picture
 */
export async function readMask(path: string, size?: ImageSize): Promise<Mask> {
  const { data, info } = await decode(path, (picture) =>
    (size ? picture.resize(size.width, size.height, { fit: "cover", kernel: "nearest" }) : picture)
      .flatten({ background: "#000000" })
      .toColourspace("b-w"),
  );
  const values = new Uint8Array(info.width * info.height);
  for (let index = 0; index < values.length; index++) values[index] = data[index * info.channels];
  return { width: info.width, height: info.height, data: values };
}

/** Pixels of the largest picture that is read: 8192 x 8192. A small file can unfold to gigabytes. */
export const mostPixels = 2 ** 26;
/** sharp also knows SVG, PDF and others, which are programs more than pictures. AVIF is a kind of HEIF. */
const readFormats = new Set(["png", "jpeg", "webp", "gif", "heif", "tiff"]);

function refuseLarge(path: string, width: number, height: number): void {
  if (width * height <= mostPixels) return;
  throw new InputError({
    what: "is too large a picture",
    file: path,
    expected: `at most ${mostPixels} pixels`,
    got: `${width} x ${height}`,
    fix: "Make it smaller first.",
  });
}

/**
 * Checks that a picture can be read, from its header alone.
 * @throws InputError as {@link readImage}
 */
export async function checkImage(path: string): Promise<void> {
  await decode(path, (picture) => picture.resize(1, 1));
}

async function decode(path: string, prepare: (picture: Sharp) => Sharp) {
  if (!existsSync(path)) throw new InputError({ what: "there is no such file", file: path, expected: "a picture" });
  try {
    const picture = sharp(path, { limitInputPixels: mostPixels });
    const { format, width = 0, height = 0 } = await picture.metadata();
    if (!readFormats.has(format ?? "")) throw new Error(`${format} files are not read`);
    refuseLarge(path, width, height);
    return await prepare(picture.rotate()).raw().toBuffer({ resolveWithObject: true });
  } catch (error) {
    if (error instanceof InputError) throw error;
    throw new InputError({
      what: `cannot be read as a picture: ${(error as Error).message.split("\n")[0]}`,
      file: path,
      expected: "PNG, JPEG, WebP, GIF, AVIF or TIFF",
    });
  }
}

function toRgb(data: Buffer, channels: number): Uint8Array {
  if (channels === 3) return new Uint8Array(data);
  const pixels = data.length / channels;
  const rgb = new Uint8Array(pixels * 3);
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      rgb[pixel * 3 + channel] = data[pixel * channels + Math.min(channel, channels - 1)];
    }
  }
  return rgb;
}

const formats = {
  png: "png",
  jpg: "jpeg",
  jpeg: "jpeg",
  webp: "webp",
  avif: "avif",
  tiff: "tiff",
  gif: "gif",
} as const;
type Extension = keyof typeof formats;

/**
 * Format that a picture's file name asks for; PNG where it has no extension.
 * @throws InputError for an extension of no format that can be written
 */
export function imageFormat(path: string): (typeof formats)[Extension] {
  const extension = /\.(\w+)$/.exec(path)?.[1]?.toLowerCase() ?? "png";
  if (Object.hasOwn(formats, extension)) return formats[extension as Extension];
  throw new InputError({
    what: `cannot write pictures of the kind .${extension}`,
    file: path,
    expected: `a name ending in ${Object.keys(formats)
      .map((name) => `.${name}`)
      .join(", ")}`,
  });
}

/**
 * Writes a picture in the format of the path's extension.
 * @throws InputError when the path has the extension of no format that can be written
 */
export async function writeImage(path: string, image: RgbImage): Promise<void> {
  const format = imageFormat(path);
  const picture = sharp(image.data, { raw: { width: image.width, height: image.height, channels: 3 } });
  // sharp compresses TIFF as JPEG unless told otherwise.
  const encoded = format === "tiff" ? picture.tiff({ compression: "lzw" }) : picture.toFormat(format);
  await writeFileAtomically(path, await encoded.toBuffer());
}
