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
  return planesOf(data);
}

function planesOf(data) {
  const rgb = new Float32Array(3 * pixels);
  const alpha = new Float32Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    alpha[pixel] = data[4 * pixel + 3] / 255;
    for (let channel = 0; channel < 3; channel++) rgb[channel * pixels + pixel] = data[4 * pixel + channel] / 255;
  }
  return { rgb, alpha };
}

/** An emoji on white. Colours `[3][pixels]`. */
export function drawnOnWhite(emoji) {
  return over(emoji, () => [1, 1, 1]);
}

/** Rec. 709 luma in all channels. */
export function greyed(colors) {
  const luma = lumaOf(colors);
  const result = new Float32Array(3 * pixels);
  for (let channel = 0; channel < 3; channel++) result.set(luma, channel * pixels);
  return result;
}

function lumaOf(colors) {
  return Float32Array.from(
    { length: pixels },
    (_, pixel) => 0.2126 * colors[pixel] + 0.7152 * colors[pixels + pixel] + 0.0722 * colors[2 * pixels + pixel],
  );
}

/** A die-cut sticker on white paper: a white border around the shape, seen by the shadow that it throws. */
export function addStickerBorder(emoji) {
  const border = dilated(emoji.alpha, 3);
  const shadow = blurred(shifted(dilated(emoji.alpha, 3.6), 0, 1), 1.4);
  const behind = (pixel) => {
    const paper = border[pixel] + (1 - border[pixel]) * (1 - 0.62 * shadow[pixel]);
    return [paper, paper, paper];
  };
  return over(emoji, behind);
}

/** Two inks, from navy over coral to cream by luma, before a blue backdrop that is light in the middle. */
export function studioPrint(emoji) {
  const inks = [
    [0.1, 0.12, 0.36],
    [0.93, 0.42, 0.4],
    [1, 0.93, 0.78],
  ];
  const printed = { rgb: new Float32Array(3 * pixels), alpha: emoji.alpha };
  const luma = lumaOf(emoji.rgb);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = 2 * Math.min(1, Math.max(0, luma[pixel]));
    const below = Math.min(1, Math.floor(place));
    for (let channel = 0; channel < 3; channel++) {
      const [from, to] = [inks[below][channel], inks[below + 1][channel]];
      printed.rgb[channel * pixels + pixel] = from + (place - below) * (to - from);
    }
  }
  const [near, far] = [
    [0.8, 0.92, 0.98],
    [0.3, 0.55, 0.75],
  ];
  return over(printed, (pixel) => {
    const distance = Math.min(1, Math.hypot((pixel % size) - 31.5, Math.floor(pixel / size) - 31.5) / 45);
    return near.map((value, channel) => value + (far[channel] - value) * distance ** 1.5);
  });
}

/** Few plain colours with dark outlines. */
export function flattened(emoji) {
  const colors = drawnOnWhite(emoji);
  const palette = paletteOf(emoji, 5);
  const nearest = Int32Array.from({ length: pixels }, (_, pixel) => nearestColor(palette, colors, pixel));
  const inside = (x, y) => at(emoji.alpha, x, y) > 0.5;
  const flat = new Float32Array(3 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      // More saturated than the shaded original, whose highlights pull towards white.
      const value = palette[nearest[pixel]][channel];
      const grey = palette[nearest[pixel]].reduce((sum, part) => sum + part / 3, 0);
      flat[channel * pixels + pixel] = Math.min(1, Math.max(0, grey + 1.25 * (value - grey)));
    }
  }
  const outside = mapped((x, y) => (inside(x, y) ? 0 : 1));
  const outline = blurred(dilated(outside, 1.8), 0.7);
  const shape = blurred(
    dilated(
      mapped((x, y) => (inside(x, y) ? 1 : 0)),
      1,
    ),
    0.5,
  );
  const ink = [0.1, 0.08, 0.12];
  const drawn = new Float32Array(3 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const at = channel * pixels + pixel;
      const body = flat[at] + (ink[channel] - flat[at]) * outline[pixel];
      drawn[at] = 1 + (body - 1) * shape[pixel];
    }
  }
  return drawn;
}

/** As if modelled in clay: round edges, light from the upper left, a highlight, a shadow on the ground. */
export function solid(emoji) {
  const height = blurred(blurred(emoji.alpha, 3.2), 2.4);
  const shadow = blurred(shifted(emoji.alpha, 2, 3), 2.2);
  const luma = blurred(lumaOf(drawnOnWhite(emoji)), 1);
  const lit = { rgb: new Float32Array(3 * pixels), alpha: emoji.alpha };
  const light = normalized([-0.5, -0.62, 0.6]);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const [x, y] = [pixel % size, Math.floor(pixel / size)];
    const slope = (plane, dx, dy) => (at(plane, x + dx, y + dy) - at(plane, x - dx, y - dy)) / 2;
    // Features stand out a little from the round body.
    const normal = normalized([
      -14 * slope(height, 1, 0) - 1.2 * slope(luma, 1, 0),
      -14 * slope(height, 0, 1) - 1.2 * slope(luma, 0, 1),
      1,
    ]);
    const diffuse = normal.reduce((sum, value, axis) => sum + value * light[axis], 0);
    const shade = 0.55 + 0.62 * Math.max(0, diffuse);
    const highlight = 0.75 * Math.max(0, diffuse) ** 24;
    for (let channel = 0; channel < 3; channel++) {
      const index = channel * pixels + pixel;
      lit.rgb[index] = Math.min(1, Math.max(0, emoji.rgb[index] * shade + highlight));
    }
  }
  return over(lit, (pixel) => {
    const ground = 1 - 0.4 * shadow[pixel];
    return [ground, ground, ground];
  });
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

function normalized(vector) {
  const length = Math.hypot(...vector);
  return vector.map((value) => value / length);
}

/** Colours that cover an emoji, and white: k-means, started from colours far apart. */
function paletteOf(emoji, count) {
  const colors = drawnOnWhite(emoji);
  const colorAt = (pixel) => [0, 1, 2].map((channel) => colors[channel * pixels + pixel]);
  const covered = Array.from({ length: pixels }, (_, pixel) => pixel).filter((pixel) => emoji.alpha[pixel] > 0.9);
  const distance = (a, b) => a.reduce((sum, value, channel) => sum + (value - b[channel]) ** 2, 0);
  const palette = [colorAt(covered[covered.length >> 1])];
  while (palette.length < count) {
    const far = (pixel) => Math.min(...palette.map((color) => distance(color, colorAt(pixel))));
    palette.push(colorAt(covered.reduce((best, pixel) => (far(pixel) > far(best) ? pixel : best))));
  }
  for (let round = 0; round < 8; round++) {
    const sums = palette.map(() => [0, 0, 0, 0]);
    for (const pixel of covered) {
      const sum = sums[nearestColor(palette, colors, pixel)];
      for (const [channel, value] of colorAt(pixel).entries()) sum[channel] += value;
      sum[3]++;
    }
    for (const [index, sum] of sums.entries()) {
      if (sum[3] > 0) palette[index] = sum.slice(0, 3).map((value) => value / sum[3]);
    }
  }
  return palette;
}

function nearestColor(palette, colors, pixel) {
  const distances = palette.map((color) =>
    color.reduce((sum, value, channel) => sum + (value - colors[channel * pixels + pixel]) ** 2, 0),
  );
  return distances.indexOf(Math.min(...distances));
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
