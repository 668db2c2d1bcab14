import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";

/** SHA-256 of a file's contents in lower-case hexadecimal, read as a stream. */
export async function hashFile(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/** SHA-256 of bytes in memory, lower-case hexadecimal. */
export function hashBytes(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
