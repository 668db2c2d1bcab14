import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { InputError, serializeSafetensors } from "@quad-lora/base";
import sharp from "sharp";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { checkImage, readImage, readMask, writeImage } from "./images.ts";
import { toRuntimeTensors, toSafetensors } from "./runtime-tensors.ts";
import { openSafetensors } from "./safetensors.ts";
import { readSafetensorsTensor } from "./tensors.ts";

const folder = temporaryFolder();
const path = (name: string) => join(folder, name);
const raw = (data: Uint8Array, width: number, height: number, channels: 1 | 2 | 3 | 4) =>
  sharp(data, { raw: { width, height, channels } });
const pixels = (data: ArrayLike<number>) => Array.from(data);

describe("readImage", () => {
  test("grey, grey with alpha, colour with alpha, palette and 16 bits become RGB on white", async () => {
    await raw(Uint8Array.of(10, 200), 2, 1, 1).png().toFile(path("grey.png"));
    expect(pixels((await readImage(path("grey.png"))).data)).toEqual([10, 10, 10, 200, 200, 200]);
    await raw(Uint8Array.of(10, 255, 10, 0), 2, 1, 2)
      .png()
      .toFile(path("grey-alpha.png"));
    expect(pixels((await readImage(path("grey-alpha.png"))).data)).toEqual([10, 10, 10, 255, 255, 255]);
    await raw(Uint8Array.of(1, 2, 3, 255, 9, 9, 9, 0), 2, 1, 4)
      .png()
      .toFile(path("alpha.png"));
    expect(pixels((await readImage(path("alpha.png"))).data)).toEqual([1, 2, 3, 255, 255, 255]);
    await raw(Uint8Array.of(255, 0, 0, 0, 0, 255), 2, 1, 3)
      .png({ palette: true })
      .toFile(path("palette.png"));
    expect(pixels((await readImage(path("palette.png"))).data)).toEqual([255, 0, 0, 0, 0, 255]);
    await raw(Uint8Array.of(0, 128, 255), 3, 1, 1)
      .toColourspace("grey16")
      .png()
      .toFile(path("deep.png"));
    expect((await sharp(path("deep.png")).metadata()).depth).toBe("ushort");
    expect(pixels((await readImage(path("deep.png"))).data)).toEqual([0, 0, 0, 128, 128, 128, 255, 255, 255]);
    expect(pixels((await readMask(path("deep.png"))).data)).toEqual([0, 128, 255]);
  });

  test("turned as the camera says, scaled to cover and cropped around the centre", async () => {
    const data = Uint8Array.of(255, 0, 0, 0, 0, 255); // red, blue
    await raw(data, 2, 1, 3).withMetadata({ orientation: 6 }).png().toFile(path("turned.png"));
    const turned = await readImage(path("turned.png"));
    expect([turned.width, turned.height]).toEqual([1, 2]);
    expect(pixels(turned.data)).toEqual([255, 0, 0, 0, 0, 255]);
    await raw(Uint8Array.of(0, 100, 100, 0), 4, 1, 1)
      .png()
      .toFile(path("wide.png"));
    const cropped = await readImage(path("wide.png"), { width: 2, height: 1 });
    expect(cropped).toMatchObject({ width: 2, height: 1 });
    expect(pixels(cropped.data)).toEqual([100, 100, 100, 100, 100, 100]);
  });

  test("a mask's edges stay hard, and transparency is black", async () => {
    await raw(Uint8Array.of(0, 255, 255, 0), 2, 2, 1)
      .png()
      .toFile(path("mask.png"));
    const mask = await readMask(path("mask.png"), { width: 8, height: 8 });
    expect(new Set(mask.data)).toEqual(new Set([0, 255]));
    await raw(Uint8Array.of(255, 255, 255, 0, 255, 255, 255, 255), 2, 1, 4)
      .png()
      .toFile(path("clear.png"));
    expect(pixels((await readMask(path("clear.png"))).data)).toEqual([0, 255]);
  });

  test("no picture, no file, a folder", async () => {
    writeFileSync(path("text.png"), "not a picture");
    for (const [file, message] of [
      [path("text.png"), /text\.png: cannot be read as a picture/],
      [path("none.png"), /none\.png: there is no such file/],
      [folder, /cannot be read as a picture/],
    ] as const) {
      await expect(readImage(file)).rejects.toThrow(InputError);
      await expect(readMask(file)).rejects.toThrow(message);
    }
  });
});

test("writeImage keeps the pixels in lossless formats and refuses unknown ones", async () => {
  const image = { width: 2, height: 1, data: Uint8Array.of(1, 2, 3, 250, 251, 252) };
  for (const name of ["out.png", "out.tiff", "no-extension"]) {
    await writeImage(path(name), image);
    expect((await readImage(path(name))).data).toEqual(image.data);
  }
  await writeImage(path("out.JPG"), image);
  expect((await sharp(path("out.JPG")).metadata()).format).toBe("jpeg");
  await expect(writeImage(path("out.docx"), image)).rejects.toThrow(/out\.docx.*\.png/);
});

describe("tensors of files", () => {
  test("are converted to the graph's types where no value is lost", async () => {
    const tensors = [
      { name: "f", dtype: "F32" as const, shape: [2], data: Float32Array.of(500, -2) },
      { name: "h", dtype: "F16" as const, shape: [1], data: Uint16Array.of(0x3e00) },
      { name: "i", dtype: "I64" as const, shape: [1], data: BigInt64Array.of(-7n) },
      { name: "b", dtype: "BOOL" as const, shape: [1], data: Uint8Array.of(1) },
      { name: "odd", dtype: "F32" as const, shape: [1], data: Float32Array.of(0.5) },
    ];
    writeFileSync(path("tensors.safetensors"), serializeSafetensors(tensors));
    const file = await openSafetensors(path("tensors.safetensors"));
    const as = async (name: string, type: string) => (await toRuntimeTensors(file, [{ name, type }]))[name].data;
    try {
      expect(await as("f", "int64")).toEqual(BigInt64Array.of(500n, -2n));
      expect(await as("f", "int32")).toEqual(Int32Array.of(500, -2));
      expect(await as("f", "float64")).toEqual(Float64Array.of(500, -2));
      expect(await as("f", "float16")).toEqual(Uint16Array.of(0x5fd0, 0xc000));
      expect(await as("h", "float32")).toEqual(Float32Array.of(1.5));
      expect(await as("h", "float16")).toEqual(Uint16Array.of(0x3e00));
      expect(await as("i", "float32")).toEqual(Float32Array.of(-7));
      expect(await as("i", "int64")).toEqual(BigInt64Array.of(-7n));
      expect(await as("b", "bool")).toEqual(Uint8Array.of(1));
      for (const [name, type] of [
        ["odd", "int64"],
        ["b", "float32"],
        ["f", "bool"],
        ["none", "float32"],
      ]) {
        await expect(as(name, type)).rejects.toThrow(InputError);
      }
      await expect(readSafetensorsTensor(path("tensors.safetensors"), ["latents"])).rejects.toThrow(/which tensor/);
      expect(await readSafetensorsTensor(path("tensors.safetensors"), ["latents", "f"])).toEqual(
        Float32Array.of(500, -2),
      );
    } finally {
      await file.close();
    }
    expect(toSafetensors({ y: { type: "int64", dims: [1], data: BigInt64Array.of(3n) } })[0]).toMatchObject({
      dtype: "I64",
    });
    expect(() => toSafetensors({ y: { type: "string", dims: [1], data: ["a"] } })).toThrow(InputError);
  });
});

test("SVG and other programs are not pictures, whatever they are called, and large ones are refused by their header", async () => {
  const svg = path("picture.png");
  writeFileSync(svg, '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>');
  await expect(readImage(svg)).rejects.toThrow(/svg files are not read .*expected PNG, JPEG/);
  const bomb = path("bomb.png");
  const blank = { width: 8193, height: 8192, channels: 3 as const, background: "#fff" };
  await sharp({ create: blank, limitInputPixels: false }).png({ compressionLevel: 9 }).toFile(bomb);
  await expect(readImage(bomb)).rejects.toThrow(/is too large a picture|exceeds pixel limit/);
  await expect(checkImage(bomb)).rejects.toThrow(InputError);
});
