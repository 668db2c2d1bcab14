import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import type { Image } from "./image.ts";
import { ssimulacra2 } from "./ssimulacra2.ts";
import { addNoise, boxBlur, drawImage, posterize, sceneImage, uniformImage } from "./testing.ts";

/** Scores of the published C++ program on pictures made by formula, from the test data of github.com/imazen/ssimulacra2. */
const PUBLISHED_UNIFORM: [size: number, shift: number, score: number][] = [
  [32, 1, 97.7492143],
  [32, 5, 98.80827382],
  [32, 10, 96.5311409],
  [32, 20, 93.7982322],
  [32, 50, 85.01409588],
  [64, 1, 97.98672126],
  [64, 5, 91.52357693],
  [64, 10, 80.24289393],
  [64, 20, 56.05855584],
  [64, 50, -8.75942256],
  [128, 1, 96.78920738],
  [128, 5, 88.54070876],
  [128, 10, 77.84296299],
  [128, 20, 54.27883917],
  [128, 50, -9.82383315],
  [256, 1, 96.15027098],
  [256, 5, 89.73209436],
  [256, 10, 80.29149136],
  [256, 20, 59.77892918],
  [256, 50, -0.39085784],
];

function congruentialNoise(size: number, seed: bigint): Image {
  let state = seed;
  const data = Uint8Array.from({ length: size * size * 3 }, () => {
    state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n);
    return Number((state >> 33n) & 255n);
  });
  return { width: size, height: size, data };
}

const sha256 = (image: Image) => createHash("sha256").update(image.data).digest("hex");

/** Undoes the score's last step, `score = 100 - 10 distance^0.6276`, which is infinitely steep at 100. */
const distanceOf = (score: number) => ((100 - score) / 10) ** (1 / 0.6276336467831387);

describe("ssimulacra2 against the published program", () => {
  // Flat pictures are its worst case: it computes variances by cancellation in 32-bit floats, we in 64-bit.
  test.each(PUBLISHED_UNIFORM)("%i pixels of grey 128 against 128 + %i", (size, shift, score) => {
    const ours = ssimulacra2(uniformImage(size, size, 128), uniformImage(size, size, 128 + shift));
    expect(Math.abs(distanceOf(ours) - distanceOf(score))).toBeLessThan(0.13);
  });

  test("a gradient against grey", () => {
    const gradient = drawImage(64, 64, (x) => Math.floor((x * 255) / 63));
    expect(sha256(gradient)).toBe("bfcfaa0618d282841d4469793253649ea6ddab2f1d0351548cb6f05a8fd79b87");
    expect(Math.abs(ssimulacra2(gradient, uniformImage(64, 64, 128)) - -64.56872148)).toBeLessThan(0.005);
  });

  test("noise against grey", () => {
    const noise = congruentialNoise(64, 42n);
    expect(sha256(noise)).toBe("7f6be7f433ccb0a006e888f827df518a15c560c44b89852441183c2f61ea59f2");
    expect(Math.abs(ssimulacra2(noise, uniformImage(64, 64, 128)) - -47.33572558)).toBeLessThan(0.005);
  });
});

describe("ssimulacra2 properties", () => {
  const scene = sceneImage(160, 144);

  test("equal images score 100, also with odd sides and at the smallest size", () => {
    expect(ssimulacra2(scene, scene)).toBe(100);
    const odd = sceneImage(71, 93);
    expect(ssimulacra2(odd, odd)).toBe(100);
    const tiny = sceneImage(8, 8);
    expect(ssimulacra2(tiny, tiny, { smallImages: "aligned" })).toBe(100);
  });

  const decreasing = (scores: number[]) => scores.every((score, i) => i === 0 || score < scores[i - 1]);

  test.each([
    ["noise", [1, 2, 4, 8, 16, 32].map((deviation) => addNoise(scene, deviation, 7))],
    ["blur", [1, 2, 3, 5].map((radius) => boxBlur(scene, radius))],
    ["coarser levels", [4, 8, 16, 32, 64].map((step) => posterize(scene, step))],
  ])("more %s scores lower", (_name, distorted) => {
    const scores = distorted.map((image) => ssimulacra2(scene, image));
    expect(scores[0]).toBeLessThan(100);
    expect(decreasing(scores)).toBe(true);
  });

  test("lost detail and added detail weigh differently, but of the same order", () => {
    const blurred = boxBlur(scene, 1);
    const forth = ssimulacra2(scene, blurred);
    const back = ssimulacra2(blurred, scene);
    expect(forth).not.toBe(back);
    expect(Math.abs(forth - back)).toBeLessThan(0.5 * (100 - Math.min(forth, back)));
  });

  test("both weight orders agree where six scales fit and differ below", () => {
    const score = (image: Image, smallImages: "aligned" | "reference") =>
      ssimulacra2(image, addNoise(image, 8, 3), { smallImages });
    const large = sceneImage(136, 129);
    expect(score(large, "aligned")).toBe(score(large, "reference"));
    const small = sceneImage(64, 64);
    expect(score(small, "aligned")).not.toBe(score(small, "reference"));
  });

  test("refuses what it cannot compare", () => {
    expect(() => ssimulacra2(scene, sceneImage(160, 143))).toThrow(/differ in size \(expected 160x144, got 160x143\)/);
    expect(() => ssimulacra2(sceneImage(7, 30), sceneImage(7, 30))).toThrow(/at least 8/);
  });
});
