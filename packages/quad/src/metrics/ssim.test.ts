import { describe, expect, test } from "vitest";
import { type Image, lumaPlane } from "./image.ts";
import { meanAbsoluteError, psnr } from "./pixel.ts";
import { MSSSIM_WEIGHTS, msssim, ssim } from "./ssim.ts";
import { addNoise, boxBlur, drawImage, posterize, sceneImage, uniformImage } from "./testing.ts";

describe("psnr and mean absolute error", () => {
  test("one step everywhere is 20 log10 255 = 48.1308 dB", () => {
    const [a, b] = [uniformImage(9, 5, 100), uniformImage(9, 5, 101)];
    expect(psnr(a, b)).toBeCloseTo(48.1308036, 6);
    expect(meanAbsoluteError(a, b)).toBe(1);
  });

  test("black against white is 0 dB, equal images are Infinity", () => {
    const [black, white] = [uniformImage(4, 4, 0), uniformImage(4, 4, 255)];
    expect(psnr(black, white)).toBe(0);
    expect(meanAbsoluteError(black, white)).toBe(255);
    expect(psnr(black, black)).toBe(Number.POSITIVE_INFINITY);
  });

  test("one wrong sample of 300 by 30", () => {
    const a = uniformImage(10, 10, 50);
    const b = { ...a, data: a.data.slice() };
    b.data[17] = 80;
    expect(psnr(a, b)).toBeCloseTo(10 * Math.log10((255 * 255 * 300) / 900), 12);
    expect(meanAbsoluteError(a, b)).toBeCloseTo(0.1, 12);
  });

  test("refuses malformed pictures", () => {
    const a = uniformImage(4, 4, 0);
    expect(() => psnr(a, { width: 4, height: 4, data: new Uint8Array(64) })).toThrow(/expected 48 bytes/);
    expect(() => psnr(a, uniformImage(4, 5, 0))).toThrow(/differ in size/);
    expect(() => psnr({ ...a, width: 0 }, a)).toThrow(/positive integers/);
  });
});

/** The definition, window by window, with two-pass weighted moments. */
function ssimByDefinition(a: Image, b: Image): number {
  const [x, y] = [lumaPlane(a).data, lumaPlane(b).data];
  const window: number[] = [];
  for (let i = -5; i <= 5; i++) for (let j = -5; j <= 5; j++) window.push(Math.exp(-(i * i + j * j) / 4.5));
  const total = window.reduce((sum, value) => sum + value, 0);
  const [c1, c2] = [6.5025, 58.5225];
  let sum = 0;
  for (let top = 0; top + 11 <= a.height; top++)
    for (let left = 0; left + 11 <= a.width; left++) {
      const expectation = (value: (index: number) => number) =>
        window.reduce((s, w, k) => s + (w / total) * value((top + Math.floor(k / 11)) * a.width + left + (k % 11)), 0);
      const mx = expectation((i) => x[i]);
      const my = expectation((i) => y[i]);
      const vx = expectation((i) => (x[i] - mx) ** 2);
      const vy = expectation((i) => (y[i] - my) ** 2);
      const cov = expectation((i) => (x[i] - mx) * (y[i] - my));
      sum += ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2));
    }
  return sum / ((a.width - 10) * (a.height - 10));
}

describe("ssim", () => {
  test.each([
    [11, 11],
    [23, 31],
    [40, 18],
  ])("the separable computation is the definition, %ix%i", (width, height) => {
    const scene = sceneImage(width, height);
    for (const other of [addNoise(scene, 12, 4), boxBlur(scene, 2), posterize(scene, 40)])
      expect(Math.abs(ssim(scene, other) - ssimByDefinition(scene, other))).toBeLessThan(1e-11);
  });

  // Computed with scipy.ndimage.gaussian_filter(sigma=1.5, truncate=3.5) by scikit-image's formula.
  test("agrees with SciPy on luma and on the mean of channels", () => {
    const scene = sceneImage(181, 203);
    const coarse = posterize(scene, 24);
    expect(scene.data.reduce((sum, value) => sum + value, 0)).toBe(13989343);
    expect(coarse.data.reduce((sum, value) => sum + value, 0)).toBe(14045832);
    expect(ssim(scene, coarse)).toBeCloseTo(0.9208800886678734, 10);
    expect(ssim(scene, coarse, { channels: "rgb" })).toBeCloseTo(0.8911477500087915, 10);
  });

  test("flat pictures leave the luminance term", () => {
    const expected = (2 * 100 * 150 + 6.5025) / (100 ** 2 + 150 ** 2 + 6.5025);
    expect(ssim(uniformImage(20, 20, 100), uniformImage(20, 20, 150))).toBeCloseTo(expected, 9);
  });

  test("is 1 for equal pictures, symmetric, negative for an inverted one, and falls with noise", () => {
    const scene = sceneImage(64, 48);
    expect(ssim(scene, scene)).toBeCloseTo(1, 12);
    const noisy = [2, 5, 12, 30].map((deviation) => addNoise(scene, deviation, 9));
    expect(ssim(scene, noisy[2])).toBeCloseTo(ssim(noisy[2], scene), 12);
    const values = noisy.map((image) => ssim(scene, image));
    expect(values).toEqual([...values].sort((a, b) => b - a));
    expect(ssim(scene, { ...scene, data: scene.data.map((value) => 255 - value) })).toBeLessThan(0);
  });

  test("needs one whole window", () => {
    expect(() => ssim(sceneImage(10, 30), sceneImage(10, 30))).toThrow(/at least 11/);
  });
});

describe("msssim", () => {
  // The reference halves as the original Matlab code: 2x2 mean with symmetric edges, every other sample.
  test("agrees with SciPy where five scales fit", () => {
    const scene = sceneImage(181, 203);
    const coarse = posterize(scene, 24);
    const luma = msssim(scene, coarse);
    expect(luma.value).toBeCloseTo(0.992946276077797, 10);
    expect(luma.scales).toBe(5);
    expect(luma.weights).toEqual(MSSSIM_WEIGHTS);
    expect(msssim(scene, coarse, { channels: "rgb" }).value).toBeCloseTo(0.9898844940381676, 10);
  });

  test("64x64 rests on three scales whose weights sum to 1", () => {
    const scene = sceneImage(64, 64);
    const result = msssim(scene, posterize(scene, 24));
    expect(result.scales).toBe(3);
    expect(result.weights.reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 12);
    expect(result.weights[1] / result.weights[0]).toBeCloseTo(0.2856 / 0.0448, 12);
    expect(result.value).toBeCloseTo(0.9876708057493084, 10);
  });

  test.each([
    [11, 1],
    [21, 2],
    [20, 1],
    [41, 3],
    [161, 5],
    [160, 4],
  ])("%i pixels fit %i scales", (side, scales) => {
    const image = drawImage(side, side + 7, (x, y) => (x * y) % 251);
    expect(msssim(image, image)).toMatchObject({ scales, value: expect.closeTo(1, 12) });
  });

  test("one scale is plain ssim, and a negative mean counts as zero", () => {
    const scene = sceneImage(17, 17);
    const noisy = addNoise(scene, 20, 2);
    expect(msssim(scene, noisy).value).toBeCloseTo(ssim(scene, noisy), 12);
    expect(msssim(scene, { ...scene, data: scene.data.map((value) => 255 - value) }).value).toBe(0);
  });
});
