import { posix } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { InputError } from "./errors.ts";
import { checkRelativePath } from "./relative-path.ts";

test.each(["manifest.json", "unet/model.onnx_data", "adapters/a b.safetensors", "...", "a..b/c", "größe/猫"])(
  "%s is a path inside the folder",
  (path) => expect(checkRelativePath(path)).toBe(path),
);

test.each(["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "C:/x", "c:x", "a\\..\\b", "a\0b", "a\nb"])(
  "%j is refused",
  (path) => {
    expect(() => checkRelativePath(path, { file: "manifest.json", where: "files" })).toThrow(InputError);
    expect(() => checkRelativePath(path, { file: "manifest.json", where: "files" })).toThrow(
      /^manifest\.json: files: /,
    );
  },
);

test("whatever is let through stays inside", () => {
  const piece = fc.constantFrom("..", ".", "/", "a", "b", "\\", "\0", "C:", "");
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 8 }), (pieces) => {
      const path = pieces.join("");
      try {
        checkRelativePath(path);
      } catch {
        return;
      }
      const resolved = posix.resolve("/folder", path);
      expect(resolved.startsWith("/folder/")).toBe(true);
    }),
    { seed: 4, numRuns: 3000 },
  );
});
