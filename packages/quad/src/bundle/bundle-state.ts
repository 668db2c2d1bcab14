import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { hashFile } from "../files/hash.ts";
import { writeRecord } from "../files/json.ts";
import { bundleFiles, readManifest, readRecords } from "./bundle-folder.ts";
import { verifyFile } from "./verify.ts";

const noteSchema = z.strictObject({
  manifest: z.string(),
  /** Hashes of the adapters' records. */
  adapters: z.record(z.string(), z.string()),
});

const noteFile = "bundle.json";

/** Writes down, in a folder elsewhere, what a bundle consists of: adapters that come later do not belong to it. */
export async function noteBundle(folder: string, bundle: string, adapters: readonly string[]): Promise<void> {
  const note = await describeBundle(bundle, adapters);
  await writeRecord(join(folder, noteFile), note);
}

/** Whether a bundle is there and is, to the byte, the one that was noted. */
export async function isBundleAsWritten(folder: string, bundle: string): Promise<boolean> {
  try {
    const text = await readFile(join(folder, noteFile), "utf8");
    const noted = noteSchema.parse(JSON.parse(text));
    const names = Object.keys(noted.adapters);
    if (JSON.stringify(await describeBundle(bundle, names)) !== JSON.stringify(noted)) return false;
    const { files } = await readManifest(bundle);
    const own = (await readRecords(bundle)).filter(({ name }) => names.includes(name));
    const expected = [
      ...Object.entries(files),
      ...own.flatMap((record) =>
        Object.entries(record.files).map(([file, entry]) => [`${bundleFiles.adapters}/${file}`, entry] as const),
      ),
    ];
    for (const [path, entry] of expected) await verifyFile(bundle, path, entry);
    return true;
  } catch {
    // Whatever is missing or damaged is made again.
    return false;
  }
}

async function describeBundle(bundle: string, adapters: readonly string[]): Promise<z.infer<typeof noteSchema>> {
  const records = await Promise.all(
    adapters.map(async (name) => [name, await hashFile(join(bundle, bundleFiles.adapters, `${name}.json`))] as const),
  );
  return { manifest: await hashFile(join(bundle, bundleFiles.manifest)), adapters: Object.fromEntries(records) };
}
