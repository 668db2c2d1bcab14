import { createHash } from "node:crypto";
import fc from "fast-check";
import { afterEach, describe, expect, test, vi } from "vitest";
import { graphHash, sha256 } from "./sha256.ts";

afterEach(() => vi.unstubAllGlobals());

describe.each([
  ["with Web Cryptography", undefined],
  ["without, as on pages that came over plain http", { getRandomValues: () => 0 }],
])("%s", (_, crypto) => {
  test("any bytes have the hash that Node.js gives", async () => {
    if (crypto) vi.stubGlobal("crypto", crypto);
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
        expect(await sha256(bytes)).toBe(createHash("sha256").update(bytes).digest("hex"));
      }),
      { seed: 20, numRuns: 50 },
    );
  });

  test("a view of a larger buffer is hashed alone", async () => {
    if (crypto) vi.stubGlobal("crypto", crypto);
    const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
    expect(await sha256(bytes.subarray(10, 20))).toBe(await sha256(bytes.slice(10, 20)));
  });
});

test("a graph's hash is that of its files' hashes, one after the other", async () => {
  const hashes = ["ab".repeat(32), "01".repeat(32)];
  expect(await graphHash(hashes)).toBe(createHash("sha256").update(hashes.join("")).digest("hex"));
});
