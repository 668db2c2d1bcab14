import { createPrivateKey, createPublicKey, type KeyObject, sign } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { signatureSuffix, signatureText, signedBytes } from "@quad-lora/runtime";
import { writeFileAtomically } from "../files/atomic.ts";
import { bundleFiles, readRecords } from "./bundle-folder.ts";
import { verifyBundle } from "./verify.ts";

/**
 * Signs a bundle: its manifest and the record of each adapter get a detached ed25519 signature beside them (RFC 8032). What
 * is signed is verified first, so that a signature never vouches for damaged files.
 * @param key - file with a private ed25519 key, PEM (PKCS 8), as `openssl genpkey -algorithm ed25519` writes it
 * @returns the signed files, relative to the bundle, and the public key in base64
 * @throws InputError for another kind of key, and for a bundle whose files differ from its manifest
 */
export async function signBundle(bundle: string, key: string): Promise<{ signed: string[]; publicKey: string }> {
  const privateKey = await readPrivateKey(key);
  const records = await readRecords(bundle);
  await verifyBundle(bundle);
  const publicBytes = createPublicKey(privateKey).export({ type: "spki", format: "der" }).subarray(-32);
  const signed = [bundleFiles.manifest, ...records.map(({ name }) => `${bundleFiles.adapters}/${name}.json`)];
  for (const path of signed) {
    const signature = sign(null, signedBytes(await readFile(join(bundle, path))), privateKey);
    await writeFileAtomically(join(bundle, `${path}${signatureSuffix}`), signatureText(publicBytes, signature));
  }
  return { signed, publicKey: publicBytes.toString("base64") };
}

async function readPrivateKey(file: string): Promise<KeyObject> {
  const fix = "Make one with openssl genpkey -algorithm ed25519 -out private.pem, and keep it out of the bundle.";
  if (!existsSync(file)) throw new InputError({ what: "there is no such file", file, expected: "a private key", fix });
  let key: KeyObject;
  try {
    key = createPrivateKey(await readFile(file));
  } catch (error) {
    throw new InputError({
      what: `is not a private key: ${(error as Error).message}`,
      file,
      expected: "PEM, PKCS 8",
      fix,
    });
  }
  if (key.asymmetricKeyType === "ed25519") return key;
  throw new InputError({
    what: "is a key of another kind",
    file,
    expected: "ed25519",
    got: key.asymmetricKeyType,
    fix,
  });
}
