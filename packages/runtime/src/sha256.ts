/**
 * SHA-256 in lower-case hexadecimal: by the engine, and in JavaScript where browsers keep Web Cryptography from a page
 * because it came over plain http. That code is loaded only there.
 */
export async function sha256(bytes: Uint8Array): Promise<string> {
  const { subtle } = globalThis.crypto ?? {};
  const digest = subtle
    ? new Uint8Array(await subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>))
    : (await import("@noble/hashes/sha2.js")).sha256(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The hash that stands for a graph: of its files' hashes, the model file's first. */
export async function graphHash(fileHashes: readonly string[]): Promise<string> {
  return sha256(new TextEncoder().encode(fileHashes.join("")));
}
