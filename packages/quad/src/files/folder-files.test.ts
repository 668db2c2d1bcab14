import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { folderFiles } from "./folder-files.ts";

function folder(): string {
  const root = join(temporaryFolder(), "model");
  mkdirSync(join(root, "unet"), { recursive: true });
  writeFileSync(join(root, "unet", "model.onnx"), "graph");
  writeFileSync(join(root, "..", "secret.txt"), "secret");
  return root;
}

test("files inside are read, listed and hashed", async () => {
  const files = folderFiles(folder());
  expect(Buffer.from(await files.read("unet/model.onnx")).toString()).toBe("graph");
  expect(await files.exists("unet/model.onnx")).toBe(true);
  expect(await files.exists("unet/other")).toBe(false);
  expect(await files.exists("unet/model.onnx/below")).toBe(false);
  expect(await files.list("unet")).toEqual(["model.onnx"]);
  expect(await files.list("")).toEqual([]);
  expect(await files.size?.("unet/model.onnx")).toBe(5);
});

describe("nothing outside is opened", () => {
  test.each(["../secret.txt", "/etc/hostname", "unet/../../secret.txt"])("by the name %s", async (path) => {
    const files = folderFiles(folder());
    await expect(files.read(path)).rejects.toThrow(InputError);
    await expect(files.exists(path)).rejects.toThrow(/outside of its folder/);
    expect(() => files.localPath?.(path)).toThrow(InputError);
  });

  test("through a link, to a file or by a folder", async () => {
    const root = folder();
    symlinkSync(join(root, "..", "secret.txt"), join(root, "unet", "model.onnx_data"));
    symlinkSync(join(root, ".."), join(root, "tokenizer"));
    const files = folderFiles(root);
    for (const path of ["unet/model.onnx_data", "tokenizer/secret.txt"]) {
      await expect(files.read(path)).rejects.toThrow(/leads out of its folder .*secret\.txt/);
      await expect(files.exists(path)).rejects.toThrow(InputError);
      await expect(files.digest?.(path)).rejects.toThrow(InputError);
    }
  });

  test("a pipe, which would be waited for", async () => {
    const root = folder();
    execFileSync("mkfifo", [join(root, "unet", "pipe")]);
    await expect(folderFiles(root).read("unet/pipe")).rejects.toThrow(/not a regular file .*pipe/);
  });
});

test("links of the Hugging Face cache are followed", async () => {
  const blob = "0123456789abcdef".repeat(4);
  const cache = join(temporaryFolder(), "models--owner--name");
  const snapshot = join(cache, "snapshots", "0123abc");
  mkdirSync(join(snapshot, "unet"), { recursive: true });
  mkdirSync(join(cache, "blobs"));
  writeFileSync(join(cache, "blobs", blob), "graph");
  symlinkSync(`../../../blobs/${blob}`, join(snapshot, "unet", "model.onnx"));
  expect(Buffer.from(await folderFiles(snapshot).read("unet/model.onnx")).toString()).toBe("graph");
});

test.skipIf(process.getuid?.() === 0)("what cannot be looked at does not pass for absent", async () => {
  const root = folder();
  chmodSync(join(root, "unet"), 0);
  await expect(folderFiles(root).exists("unet/model.onnx")).rejects.toThrow(/EACCES/);
  chmodSync(join(root, "unet"), 0o755);
});
