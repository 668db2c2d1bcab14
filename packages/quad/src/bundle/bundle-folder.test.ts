import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { readManifest, readRecords, recordFiles } from "./bundle-folder.ts";

const folder = temporaryFolder();

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

describe("a bundle's folder", () => {
  test("without a manifest is not a bundle, and one without adapters has no records", async () => {
    await expect(readManifest(folder)).rejects.toThrow(/manifest\.json: there is no such file.*quad build/);
    expect(await readRecords(folder)).toEqual([]);
  });

  test("is listed with hashes and sizes, sorted, without adapters and the manifest itself", async () => {
    const bundle = join(folder, "listed");
    const texts = { "unet/model.onnx": "graph", "profile.json": "{}", "a/b/c.txt": "deep" };
    for (const [path, text] of Object.entries(texts)) write(join(bundle, path), text);
    write(join(bundle, "manifest.json"), "{}");
    write(join(bundle, "adapters/flat.json"), "{}");
    const files = await recordFiles(bundle);
    expect(Object.keys(files)).toEqual(["a/b/c.txt", "profile.json", "unet/model.onnx"]);
    for (const [path, text] of Object.entries(texts)) {
      const sha256 = createHash("sha256").update(text).digest("hex");
      expect(files[path]).toEqual({ sha256, bytes: text.length });
    }
    await expect(recordFiles(bundle, AbortSignal.abort(new Error("stopped")))).rejects.toThrow("stopped");
  });
});
