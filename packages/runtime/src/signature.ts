import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { type FolderFiles, parseJson } from "./files.ts";

/** A file's detached signature lies beside it, under its name and this. */
export const signatureSuffix = ".sig";

/** `FILE.sig`: a detached signature. */
export const signatureSchema = z.looseObject({
  format: z.literal("quad-signature"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  /** Ed25519 (RFC 8032) over the signed file's bytes after the line `signedContext`. */
  algorithm: z.literal("ed25519"),
  /** The signer's public key: 32 bytes, base64. Says which key to look for, not that it is to be trusted. */
  key: z.string(),
  /** 64 bytes, base64. */
  signature: z.string(),
});

/** Stands before what is signed: so that a signature of Quad cannot be passed off as one of something else. */
const signedContext = "quad-signature 1\n";

/** What a signature is computed over. */
export function signedBytes(contents: Uint8Array): Uint8Array<ArrayBuffer> {
  const context = new TextEncoder().encode(signedContext);
  const bytes = new Uint8Array(context.length + contents.length);
  bytes.set(context);
  bytes.set(contents, context.length);
  return bytes;
}

/** The text of a signature's file. */
export function signatureText(publicKey: Uint8Array, signature: Uint8Array): string {
  const content: z.infer<typeof signatureSchema> = {
    format: "quad-signature",
    version: 1,
    algorithm: "ed25519",
    key: toBase64(publicKey),
    signature: toBase64(signature),
  };
  return `${JSON.stringify(content, null, 1)}\n`;
}

/**
 * Checks a file's detached signature (Web Cryptography's Ed25519).
 *
 * @param path - the signed file; `contents` are its bytes
 * @param trustedKeys - PEM or base64 of 32 bytes
 * @throws InputError when there is no signature, none of the keys made it, or the file was changed after it was signed
 */
export async function verifySignature(
  files: FolderFiles,
  path: string,
  contents: Uint8Array,
  trustedKeys: readonly string[],
): Promise<void> {
  const file = files.describe(path);
  const signatureFile = `${path}${signatureSuffix}`;
  const keys = trustedKeys.map(publicKeyBytes);
  if (!(await files.exists(signatureFile))) {
    throw new InputError({
      what: "is not signed",
      file,
      expected: `a signature in ${files.describe(signatureFile)}`,
      fix: "Sign the bundle with quad sign, or open it without trusted keys.",
    });
  }
  const text = new TextDecoder().decode(await files.read(signatureFile));
  const { key, signature } = parseJson(text, files.describe(signatureFile), signatureSchema);
  const signer = keys.find((trusted) => toBase64(trusted) === key);
  if (!signer) {
    throw new InputError({
      what: "is signed with a key that is not trusted",
      file,
      expected: keys.map(toBase64).join(" or "),
      got: key,
      fix: "Trust this key only if its owner gave it to you in another way.",
    });
  }
  if (await isSignatureOf(signer, fromBase64(signature), contents)) return;
  throw new InputError({
    what: "was changed after it was signed",
    file,
    fix: "Take the file from its source again; do not sign it anew without knowing what changed.",
  });
}

async function isSignatureOf(key: Uint8Array, signature: Uint8Array, contents: Uint8Array): Promise<boolean> {
  const { subtle } = globalThis.crypto ?? {};
  try {
    const imported = await subtle.importKey("raw", key as Uint8Array<ArrayBuffer>, "Ed25519", false, ["verify"]);
    return await subtle.verify("Ed25519", imported, signature as Uint8Array<ArrayBuffer>, signedBytes(contents));
  } catch (error) {
    throw new InputError({
      what: "signatures cannot be checked here",
      expected:
        "Web Cryptography with Ed25519: https or localhost, Chrome 137, Firefox 129, Safari 17, Node.js 20 or later",
      got: String((error as Error)?.message ?? error),
    });
  }
}

/** SubjectPublicKeyInfo of an Ed25519 key up to the 32 bytes of the key itself (RFC 8410). */
const keyInfoPrefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/**
 * The 32 bytes of a public key.
 *
 * @param key - PEM (`-----BEGIN PUBLIC KEY-----`, as OpenSSL writes it), or the bytes in base64
 * @throws InputError for anything else
 */
export function publicKeyBytes(key: string): Uint8Array {
  const pem = /-----BEGIN PUBLIC KEY-----([\s\S]+?)-----END PUBLIC KEY-----/.exec(key);
  const bytes = fromBase64((pem ? pem[1] : key).replace(/\s/g, ""));
  if (!pem && bytes.length === 32) return bytes;
  if (pem && bytes.length === 44 && keyInfoPrefix.every((byte, index) => bytes[index] === byte)) return bytes.slice(12);
  throw new InputError({
    what: "is not a public ed25519 key",
    expected: "a PEM file with BEGIN PUBLIC KEY, or 32 bytes in base64",
    fix: "Write one with openssl pkey -in private.pem -pubout.",
  });
}

function toBase64(bytes: Uint8Array): string {
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

function fromBase64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return new Uint8Array(0);
  }
}
