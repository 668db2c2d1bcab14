import { rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expose } from "quad-lora";

/** The pocket model as exported: no adapter inputs. */
export const pocketFolder = fileURLToPath(new URL("../../models/pocket", import.meta.url));

const exposed = new Map<string, Promise<string>>();

/** Path of the pocket model with adapter inputs, its adapters and tasks; made once per process and kind of rank. */
export function exposedPocket(rank: "dynamic" | "fixed" = "dynamic"): Promise<string> {
  let folder = exposed.get(rank);
  if (!folder) exposed.set(rank, (folder = exposeInto(rank)));
  return folder;
}

async function exposeInto(rank: "dynamic" | "fixed"): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), "quad-exposed-"));
  process.once("exit", () => rmSync(parent, { recursive: true, force: true }));
  const out = join(parent, "pocket");
  await expose(pocketFolder, {
    out,
    adapters: { flat: "flat", sketch: "sketch", erase: "erase" },
    // Enough for the widest blend in the tests: flat 16 + sketch 8.
    rank: rank === "fixed" ? { kind: "fixed", rank: 24 } : { kind: "dynamic" },
  });
  return out;
}
