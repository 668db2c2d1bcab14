// Pictures of 64 x 64 pixels as { rgb, alpha }: planes of numbers in [0, 1], colours not premultiplied.
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import sharp from "sharp";

const size = 64;
const pixels = size * size;

/** An emoji in the middle, `side` pixels large, on nothing. */
export async function fitted(path, side) {
  const before = Math.floor((size - side) / 2);
  const after = size - side - before;
  const clear = { r: 0, g: 0, b: 0, alpha: 0 };
  const data = await sharp(path)
    .resize(side, side, { kernel: "lanczos3", fit: "contain", background: clear })
    .ensureAlpha()
    .extend({ top: before, left: before, bottom: after, right: after, background: clear })
    .raw()
    .toBuffer();
  const rgb = new Float32Array(3 * pixels);
  const alpha = new Float32Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    alpha[pixel] = data[4 * pixel + 3] / 255;
    for (let channel = 0; channel < 3; channel++) rgb[channel * pixels + pixel] = data[4 * pixel + channel] / 255;
  }
  return { rgb, alpha };
}

/** As the base's training pictures: scaled, on white. Colours `[3][pixels]`. */
export async function onWhite(path, side) {
  return over(await fitted(path, side), () => [1, 1, 1]);
}

/** Rec. 709 luma in all channels. */
export function greyed(colors) {
  const result = new Float32Array(3 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const luma = 0.2126 * colors[pixel] + 0.7152 * colors[pixels + pixel] + 0.0722 * colors[2 * pixels + pixel];
    for (let channel = 0; channel < 3; channel++) result[channel * pixels + pixel] = luma;
  }
  return result;
}

/** A die-cut sticker: a white border around the shape, a soft shadow below it, light grey behind. */
export function addStickerBorder(emoji) {
  const border = dilated(emoji.alpha, 4);
  const shadow = blurred(shifted(border, 1, 2), 1.6);
  const behind = (pixel) => {
    const shade = 0.82 * (1 - 0.5 * shadow[pixel]);
    const paper = border[pixel] + (1 - border[pixel]) * shade;
    return [paper, paper, paper];
  };
  return over(emoji, behind);
}

/** A studio portrait: a blue backdrop with light in the middle, a soft shadow of the figure on it. */
export function addBackdrop(emoji) {
  const shadow = blurred(shifted(emoji.alpha, 2, 3), 2.5);
  const [near, far] = [
    [0.62, 0.8, 0.95],
    [0.12, 0.2, 0.42],
  ];
  const behind = (pixel) => {
    const [x, y] = [(pixel % size) - 31.5, Math.floor(pixel / size) - 28];
    const distance = Math.min(1, Math.hypot(x, y) / 44);
    const shade = 1 - 0.45 * shadow[pixel];
    return near.map((value, channel) => (value + (far[channel] - value) * distance ** 1.5) * shade);
  };
  return over(emoji, behind);
}

export async function savePicture(path, colors) {
  const data = new Uint8ClampedArray(3 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) data[3 * pixel + channel] = 255 * colors[channel * pixels + pixel];
  }
  await mkdir(dirname(path), { recursive: true });
  await sharp(data, { raw: { width: size, height: size, channels: 3 } })
    .png()
    .toFile(path);
}

function over({ rgb, alpha }, behind) {
  const result = new Float32Array(3 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const back = behind(pixel);
    for (let channel = 0; channel < 3; channel++) {
      const at = channel * pixels + pixel;
      result[at] = alpha[pixel] * rgb[at] + (1 - alpha[pixel]) * back[channel];
    }
  }
  return result;
}

/** Grown by a disc whose edge is one pixel soft. */
function dilated(plane, radius) {
  const reach = Math.ceil(radius);
  return mapped((x, y) => {
    let most = 0;
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) {
        const cover = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(dx, dy)));
        most = Math.max(most, cover * at(plane, x + dx, y + dy));
      }
    }
    return most;
  });
}

function shifted(plane, right, down) {
  return mapped((x, y) => at(plane, x - right, y - down));
}

function blurred(plane, deviation) {
  const reach = Math.ceil(3 * deviation);
  const weights = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-((i - reach) ** 2) / (2 * deviation ** 2)));
  const total = weights.reduce((a, b) => a + b, 0);
  const along = (source, dx, dy) =>
    mapped((x, y) =>
      weights.reduce(
        (sum, weight, i) => sum + (weight / total) * at(source, x + dx * (i - reach), y + dy * (i - reach)),
        0,
      ),
    );
  return along(along(plane, 1, 0), 0, 1);
}

function mapped(value) {
  return Float32Array.from({ length: pixels }, (_, pixel) => value(pixel % size, Math.floor(pixel / size)));
}

function at(plane, x, y) {
  return x < 0 || y < 0 || x >= size || y >= size ? 0 : plane[y * size + x];
}
