import type { Image } from "./image.ts";

/** Test pictures, drawn by formula or a fixed seed. */

export function drawImage(width: number, height: number, pixel: (x: number, y: number, c: number) => number): Image {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++)
        data[(y * width + x) * 3 + c] = Math.max(0, Math.min(255, Math.round(pixel(x, y, c))));
  return { width, height, data };
}

export function uniformImage(width: number, height: number, value: number): Image {
  return drawImage(width, height, () => value);
}

/** Smooth waves of several frequencies with sharp blocks on top: texture, edges and flat parts. */
export function sceneImage(width: number, height: number): Image {
  return drawImage(width, height, (x, y, c) => {
    const waves = 60 * Math.sin(x / (5 + c)) * Math.cos(y / (7 - c)) + 30 * Math.sin((x + 2 * y) / 19);
    const block = (Math.floor(x / 16) + Math.floor(y / 16)) % 3 === 0 ? 50 : 0;
    return 110 + waves + block;
  });
}

/** Mulberry32: uniform numbers in [0, 1) from a seed. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers (Box and Muller). */
export function seededNormal(seed: number): () => number {
  const random = seededRandom(seed);
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

export function addNoise(image: Image, deviation: number, seed: number): Image {
  const normal = seededNormal(seed);
  return drawImage(
    image.width,
    image.height,
    (x, y, c) => image.data[(y * image.width + x) * 3 + c] + deviation * normal(),
  );
}

/** Mean over a `(2 radius + 1)^2` box, edges repeated. */
export function boxBlur(image: Image, radius: number): Image {
  const { width, height, data } = image;
  return drawImage(width, height, (x, y, c) => {
    let sum = 0;
    for (let dy = -radius; dy <= radius; dy++)
      for (let dx = -radius; dx <= radius; dx++) {
        const row = Math.max(0, Math.min(height - 1, y + dy));
        const column = Math.max(0, Math.min(width - 1, x + dx));
        sum += data[(row * width + column) * 3 + c];
      }
    return sum / (2 * radius + 1) ** 2;
  });
}

/** Every sample rounded to a multiple of `step`. */
export function posterize(image: Image, step: number): Image {
  return { ...image, data: image.data.map((value) => Math.min(255, Math.round(value / step) * step)) };
}
