import { InputError } from "@quad-lora/base";

/** An 8-bit picture in sRGB. `data` is `[height, width, 3]`: row-major, RGB interleaved, 0..255. */
export interface Image {
  width: number;
  height: number;
  data: Uint8Array;
}

/** One channel of a picture as real numbers, `[height, width]` row-major. */
export interface Plane {
  width: number;
  height: number;
  data: Float64Array;
}

/** Which channels a structural metric looks at: BT.601 luma, or R, G and B each, averaged. */
export type MetricChannels = "luma" | "rgb";

/** @throws InputError when the sides are not positive integers or `data` does not hold width * height * 3 bytes. */
export function checkImage(image: Image, name: string): void {
  const { width, height, data } = image;
  if (!Number.isInteger(width) || !Number.isInteger(height) || width < 1 || height < 1)
    throw new InputError({
      what: "an image's sides must be positive integers",
      where: name,
      got: `${width}x${height}`,
      fix: "Pass the decoded picture's width and height.",
    });
  if (data.length !== width * height * 3)
    throw new InputError({
      what: "an image's data does not fit its size",
      where: name,
      expected: `${width * height * 3} bytes (${width}x${height}, RGB)`,
      got: `${data.length} bytes`,
      fix: "Remove an alpha channel and expand grey to RGB before comparing.",
    });
}

/** @throws InputError when either image is malformed or the two differ in size. */
export function checkImagePair(a: Image, b: Image): void {
  checkImage(a, "first image");
  checkImage(b, "second image");
  if (a.width !== b.width || a.height !== b.height)
    throw new InputError({
      what: "the two images differ in size",
      where: "second image",
      expected: `${a.width}x${a.height}`,
      got: `${b.width}x${b.height}`,
      fix: "Generate or resize both to one size before comparing.",
    });
}

/** Full-range luma of BT.601, `0.299 R + 0.587 G + 0.114 B`, 0..255, not rounded. */
export function lumaPlane(image: Image): Plane {
  const { width, height, data } = image;
  const luma = new Float64Array(width * height);
  for (let i = 0; i < luma.length; i++)
    luma[i] = 0.299 * data[3 * i] + 0.587 * data[3 * i + 1] + 0.114 * data[3 * i + 2];
  return { width, height, data: luma };
}

/** The three channels R, G, B as planes of 0..255. */
export function rgbPlanes(image: Image): [Plane, Plane, Plane] {
  const { width, height, data } = image;
  const channel = (offset: number): Plane => {
    const values = new Float64Array(width * height);
    for (let i = 0; i < values.length; i++) values[i] = data[3 * i + offset];
    return { width, height, data: values };
  };
  return [channel(0), channel(1), channel(2)];
}

/** The planes a structural metric averages over. */
export function metricPlanes(image: Image, channels: MetricChannels): Plane[] {
  return channels === "luma" ? [lumaPlane(image)] : rgbPlanes(image);
}
