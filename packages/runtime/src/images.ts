import { InputError } from "@quad-lora/base";

/** A picture as rows of pixels, three bytes each: red, green, blue. */
export interface RgbImage {
  width: number;
  height: number;
  /** `height * width * 3` bytes. */
  data: Uint8Array | Uint8ClampedArray;
}

/** One byte per pixel: 128 and more is painted, less is kept. */
export interface Mask {
  width: number;
  height: number;
  /** `height * width` bytes. */
  data: Uint8Array | Uint8ClampedArray;
}

/** Drops the fourth byte of every pixel: what a canvas's `ImageData` holds becomes an {@link RgbImage}. */
export function rgbFromRgba({ width, height, data }: RgbImage): RgbImage {
  const rgb = new Uint8Array(width * height * 3);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) rgb[pixel * 3 + channel] = data[pixel * 4 + channel];
  }
  return { width, height, data: rgb };
}

/** Adds an opaque fourth byte to every pixel, for `ImageData`. */
export function rgbaFromRgb({ width, height, data }: RgbImage): Uint8ClampedArray<ArrayBuffer> {
  const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) rgba[pixel * 4 + channel] = data[pixel * 3 + channel];
  }
  return rgba;
}

/**
 * Nearest-neighbour resize of a one-channel plane, `source = floor(target * from / to)`: the rule of
 * `torch.nn.functional.interpolate(mode="nearest")`, with which diffusers scales masks to latents.
 */
export function resizeNearest<Plane extends Uint8Array | Uint8ClampedArray | Float32Array>(
  plane: Plane,
  from: { width: number; height: number },
  to: { width: number; height: number },
): Plane {
  const resized = new (plane.constructor as new (length: number) => Plane)(to.width * to.height);
  for (let y = 0; y < to.height; y++) {
    const row = Math.floor((y * from.height) / to.height) * from.width;
    for (let x = 0; x < to.width; x++) {
      resized[y * to.width + x] = plane[row + Math.floor((x * from.width) / to.width)];
    }
  }
  return resized;
}

/** `[3, height, width]` in [-1, 1], as autoencoders take it; pixels under the mask become 0, which is mid-grey. */
export function imageToPlanes(image: RgbImage, mask?: Mask): Float32Array {
  const size = image.width * image.height;
  const planes = new Float32Array(3 * size);
  for (let pixel = 0; pixel < size; pixel++) {
    if (mask && isPainted(mask.data[pixel])) continue;
    for (let channel = 0; channel < 3; channel++) {
      planes[channel * size + pixel] = image.data[pixel * 3 + channel] / 127.5 - 1;
    }
  }
  return planes;
}

/** `[3, height, width]` in [0, 1], as ControlNets take it. */
export function imageToShares(image: RgbImage): Float32Array {
  return imageToPlanes(image).map((value) => value / 2 + 0.5);
}

/** The reverse of {@link imageToPlanes}: clamped, and rounded to the nearest byte. */
export function planesToImage(planes: Float32Array, width: number, height: number): RgbImage & { data: Uint8Array } {
  const size = width * height;
  // A clamped array also rounds, half to even, as numpy does.
  const data = new Uint8ClampedArray(size * 3);
  for (let channel = 0; channel < 3; channel++) {
    for (let pixel = 0; pixel < size; pixel++) {
      data[pixel * 3 + channel] = (planes[channel * size + pixel] * 0.5 + 0.5) * 255;
    }
  }
  return { width, height, data: new Uint8Array(data.buffer) };
}

/** Whether a mask's byte means "paint here". */
export function isPainted(value: number): boolean {
  return value >= 128;
}

/**
 * Checks that a picture or mask holds as many bytes as its size says.
 *
 * @throws InputError otherwise
 */
export function checkImage(name: string, image: RgbImage | Mask, channels: 1 | 3): void {
  const { width, height, data } = image;
  const whole = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  if (whole && data.length === width * height * channels) return;
  throw new InputError({
    what: `the ${name} holds another number of bytes than its size says`,
    expected: `${width} x ${height} x ${channels} = ${width * height * channels}`,
    got: String(data.length),
    fix: channels === 3 ? "Pass three bytes per pixel, without alpha" : "Pass one byte per pixel",
  });
}
