import { readFile } from "node:fs/promises";
import { join } from "node:path";
import sharp from "sharp";
import { readImage } from "../files/images.ts";

/** Sides up to this go into the report as they are; larger pictures are shown smaller. */
export const largestSide = 256;
/** Differences of this many of 255 steps and more are white. */
export const fullDifference = 32;

/** A picture as a data URL. */
export async function embedPicture(folder: string, path: string): Promise<string> {
  const bytes = await readFile(join(folder, path));
  const { width = 0, height = 0 } = await sharp(bytes).metadata();
  if (Math.max(width, height) <= largestSide) return dataUrl("png", bytes);
  const small = sharp(bytes).resize(largestSide, largestSide, { fit: "inside", kernel: "lanczos3" });
  return dataUrl("webp", await small.webp({ quality: 90 }).toBuffer());
}

/** Where two pictures differ: the largest difference of a pixel's channels, from black (none) over violet and orange to white. */
export async function embedDifference(folder: string, a: string, b: string): Promise<string> {
  const [first, second] = [await readImage(join(folder, a)), await readImage(join(folder, b))];
  const data = new Uint8Array(first.data.length);
  for (let pixel = 0; pixel < data.length; pixel += 3) {
    let difference = 0;
    for (let channel = 0; channel < 3; channel++) {
      difference = Math.max(difference, Math.abs(first.data[pixel + channel] - second.data[pixel + channel]));
    }
    data.set(heat(difference / fullDifference), pixel);
  }
  const picture = sharp(data, { raw: { width: first.width, height: first.height, channels: 3 } });
  const fitted = picture.resize(largestSide, largestSide, {
    fit: "inside",
    kernel: "nearest",
    withoutEnlargement: true,
  });
  return dataUrl("png", await fitted.png({ compressionLevel: 9, palette: true }).toBuffer());
}

const stops = [
  [0, 0, 0],
  [66, 10, 104],
  [188, 55, 84],
  [249, 142, 9],
  [255, 255, 230],
];

function heat(share: number): number[] {
  const position = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(position), stops.length - 2);
  return stops[index].map((value, channel) =>
    Math.round(value + (position - index) * (stops[index + 1][channel] - value)),
  );
}

function dataUrl(type: string, bytes: Uint8Array): string {
  return `data:image/${type};base64,${Buffer.from(bytes).toString("base64")}`;
}
