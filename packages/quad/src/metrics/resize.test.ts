import { describe, expect, test } from "vitest";
import { centreSquare, resizeToPlanes } from "./resize.ts";
import { drawImage, sceneImage, uniformImage } from "./testing.ts";

describe("resizeToPlanes", () => {
  test.each(["bilinear", "bicubic"] as const)("%s at the same size keeps every sample", (interpolation) => {
    const scene = sceneImage(13, 9);
    const planes = resizeToPlanes(scene, 13, 9, interpolation);
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < 13 * 9; i++) expect(planes[c * 117 + i]).toBeCloseTo(scene.data[3 * i + c], 4);
  });

  test.each(["bilinear", "bicubic"] as const)("%s keeps a flat picture flat at any size", (interpolation) => {
    for (const [width, height] of [
      [5, 40],
      [31, 3],
      [1, 1],
    ])
      for (const value of resizeToPlanes(uniformImage(17, 11, 77), width!, height!, interpolation))
        expect(value).toBeCloseTo(77, 4);
  });

  test.each(["bilinear", "bicubic"] as const)("%s reproduces a ramp away from the border", (interpolation) => {
    const ramp = drawImage(60, 4, (x) => 4 * x);
    for (const width of [20, 90]) {
      const planes = resizeToPlanes(ramp, width, 4, interpolation);
      for (let x = Math.ceil(width / 10); x < width - Math.ceil(width / 10); x++)
        expect(planes[x]).toBeCloseTo(4 * (((x + 0.5) * 60) / width - 0.5), 3);
    }
  });

  test("bilinear to a half weighs four pixels 1, 3, 3, 1", () => {
    const values = [10, 250, 30, 90, 200, 60, 0, 120];
    const planes = resizeToPlanes(
      drawImage(8, 1, (x) => values[x]),
      4,
      1,
      "bilinear",
    );
    expect(planes[1]).toBeCloseTo((250 + 3 * 30 + 3 * 90 + 200) / 8, 4);
    expect(planes[0]).toBeCloseTo((3 * 10 + 3 * 250 + 30) / 7, 4);
  });

  test("bicubic to the double has taps of Keys' kernel at a quarter pixel", () => {
    const values = [10, 250, 30, 90, 200, 60];
    const planes = resizeToPlanes(
      drawImage(6, 1, (x) => values[x]),
      12,
      1,
      "bicubic",
    );
    // a = -1/2 at distances 1.25, 0.25, 0.75, 1.75
    const expected = -0.0703125 * 250 + 0.8671875 * 30 + 0.2265625 * 90 - 0.0234375 * 200;
    expect(planes[5]).toBeCloseTo(expected, 4);
  });

  test("a centred square of a wide picture is its middle", () => {
    const wide = drawImage(20, 8, (x, y, c) => 10 * x + y + c);
    expect(centreSquare(wide)).toEqual({ left: 6, top: 0, width: 8, height: 8 });
    const planes = resizeToPlanes(wide, 8, 8, "bicubic", centreSquare(wide));
    expect(planes[0]).toBeCloseTo(60, 4);
    expect(planes[2 * 64 + 63]).toBeCloseTo(130 + 7 + 2, 4);
  });

  test("refuses sizes that are not positive integers", () => {
    expect(() => resizeToPlanes(uniformImage(4, 4, 1), 0, 3, "bilinear")).toThrow(/0x3/);
    expect(() => resizeToPlanes(uniformImage(4, 4, 1), 2.5, 3, "bilinear")).toThrow(/2.5x3/);
  });
});
