import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { checkImage, imageToPlanes, planesToImage, resizeNearest, rgbaFromRgb, rgbFromRgba } from "./images.ts";

const image = fc
  .tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 6 }))
  .chain(([width, height]) =>
    fc
      .uint8Array({ minLength: width * height * 3, maxLength: width * height * 3 })
      .map((data) => ({ width, height, data: new Uint8Array(data) })),
  );

describe("pictures and planes", () => {
  test("there and back is exact", () => {
    fc.assert(
      fc.property(image, (picture) => {
        expect(planesToImage(imageToPlanes(picture), picture.width, picture.height)).toEqual(picture);
        expect(rgbFromRgba({ ...picture, data: rgbaFromRgb(picture) })).toEqual(picture);
      }),
    );
  });

  test("channels are planes, black is -1, white is 1", () => {
    const picture = { width: 2, height: 1, data: Uint8Array.of(0, 255, 0, 255, 0, 255) };
    expect([...imageToPlanes(picture)]).toEqual([-1, 1, 1, -1, -1, 1]);
  });

  test("pixels under the mask are mid-grey from 128 on", () => {
    const picture = { width: 2, height: 1, data: Uint8Array.of(255, 255, 255, 255, 255, 255) };
    const mask = { width: 2, height: 1, data: Uint8Array.of(127, 128) };
    expect([...imageToPlanes(picture, mask)]).toEqual([1, 0, 1, 0, 1, 0]);
  });

  test("values outside [-1, 1] are clamped", () => {
    expect([...planesToImage(Float32Array.of(-3, 0, 3), 1, 1).data]).toEqual([0, 128, 255]);
  });
});

describe("resizeNearest", () => {
  test("takes the upper left of each block when shrinking", () => {
    const plane = Uint8Array.from({ length: 16 }, (_, index) => index);
    expect([...resizeNearest(plane, { width: 4, height: 4 }, { width: 2, height: 2 })]).toEqual([0, 2, 8, 10]);
  });

  test("shrinking undoes growing", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 4 }),
        (w, h, k) => {
          const plane = Float32Array.from({ length: w * h }, (_, index) => index);
          const [small, large] = [
            { width: w, height: h },
            { width: w * k, height: h * k },
          ];
          expect(resizeNearest(resizeNearest(plane, small, large), large, small)).toEqual(plane);
        },
      ),
    );
  });
});

test("a picture with alpha is refused", () => {
  const picture = { width: 2, height: 2, data: new Uint8Array(16) };
  expect(() => checkImage("image", picture, 3)).toThrow(InputError);
  expect(() => checkImage("image", picture, 3)).toThrow(/2 x 2 x 3 = 12, got 16/);
});
