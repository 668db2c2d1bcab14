import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InputError, serializeSafetensors } from "@quad-lora/base";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { writeFileAtomically } from "./atomic.ts";
import { hashFile } from "./hash.ts";
import { openSafetensors, writeSafetensors } from "./safetensors.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quad-files-"));
});
afterAll(() => rm(folder, { recursive: true }));

const tensors = [
  { name: "odd", dtype: "U8" as const, shape: [3], data: Uint8Array.of(1, 2, 3) },
  { name: "floats", dtype: "F32" as const, shape: [2, 2], data: Float32Array.of(1, -2, 3.5, 0) },
];

describe("writeFileAtomically", () => {
  test("writes bytes, text and streams, makes folders and replaces files", async () => {
    const path = join(folder, "deep", "er", "file.txt");
    await writeFileAtomically(path, "grün");
    expect(await readFile(path, "utf8")).toBe("grün");
    async function* parts() {
      for (let i = 0; i < 3; i++) yield Uint8Array.of(i, i);
    }
    await writeFileAtomically(path, parts());
    expect([...(await readFile(path))]).toEqual([0, 0, 1, 1, 2, 2]);
    await writeFileAtomically(path, Uint8Array.of(9));
    expect([...(await readFile(path))]).toEqual([9]);
    expect(await readdir(join(folder, "deep", "er"))).toEqual(["file.txt"]);
  });

  test("a failing source leaves the old file and no temporary one", async () => {
    const path = join(folder, "kept", "file");
    await writeFileAtomically(path, "old");
    async function* failing() {
      yield Uint8Array.of(1);
      throw new Error("source broke");
    }
    await expect(writeFileAtomically(path, failing())).rejects.toThrow("source broke");
    expect(await readFile(path, "utf8")).toBe("old");
    expect(await readdir(join(folder, "kept"))).toEqual(["file"]);
  });
});

test("hashFile is SHA-256 of the contents", async () => {
  const path = join(folder, "hashed");
  await writeFile(path, "abc");
  // FIPS 180-2, appendix B.1.
  expect(await hashFile(path)).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const large = new Uint8Array(3_000_001).fill(7);
  await writeFile(path, large);
  expect(await hashFile(path)).toBe(createHash("sha256").update(large).digest("hex"));
});

describe("safetensors on disk", () => {
  test("writes the same bytes as in memory and reads tensors one by one", async () => {
    const path = join(folder, "a.safetensors");
    const lazy = tensors.map((tensor) => ({ ...tensor, data: async () => tensor.data }));
    await writeSafetensors(path, lazy, { format: "pt" });
    expect(new Uint8Array(await readFile(path))).toEqual(serializeSafetensors(tensors, { format: "pt" }));
    const reader = await openSafetensors(path);
    try {
      expect(reader.metadata).toEqual({ format: "pt" });
      expect([...reader.entries.keys()]).toEqual(["odd", "floats"]);
      expect([...(await reader.readFloat32("floats"))]).toEqual([1, -2, 3.5, 0]);
      expect([...(await reader.read("odd")).bytes]).toEqual([1, 2, 3]);
      await expect(reader.read("none")).rejects.toThrow(InputError);
    } finally {
      await reader.close();
    }
  });

  test("every truncation is an InputError of this package, with the path", async () => {
    const bytes = serializeSafetensors(tensors);
    const path = join(folder, "cut.safetensors");
    for (let length = 0; length < bytes.length; length++) {
      await writeFile(path, bytes.subarray(0, length));
      const error = await openSafetensors(path).catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(InputError);
      expect((error as InputError).message).toContain("cut.safetensors");
    }
  });

  test("missing files, folders and files of another kind", async () => {
    await expect(openSafetensors(join(folder, "missing"))).rejects.toThrow(/does not exist/);
    await expect(openSafetensors(folder)).rejects.toThrow(/not a file/);
    await writeFile(join(folder, "page.html"), "<!doctype html><title>Not found</title>");
    await expect(openSafetensors(join(folder, "page.html"))).rejects.toThrow(/not a safetensors file/);
  });

  test("data of the wrong length leaves no file", async () => {
    const path = join(folder, "wrong", "b.safetensors");
    await expect(writeSafetensors(path, [{ ...tensors[0], shape: [4] }])).rejects.toThrow(InputError);
    expect(await readdir(join(folder, "wrong"))).toEqual([]);
  });
});
