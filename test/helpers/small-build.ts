import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseSafetensors, type SafetensorsInput, serializeSafetensors } from "@quad-lora/base";
import { type BuildConfigInput, loadConfig } from "quad-lora";
import { pocketFolder } from "./exposed-pocket.ts";

/** A folder of its own that is gone when the process ends. */
export async function scratchFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "quad-build-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The tensors of one of the pocket model's adapter files whose names match. */
export function adapterTensors(file: string, pattern: RegExp): SafetensorsInput[] {
  const { tensors } = parseSafetensors(readFileSync(join(pocketFolder, "adapters", file)), file);
  return [...tensors.values()]
    .filter(({ name }) => pattern.test(name))
    .map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, data: bytes }));
}

/** The layers that the small adapters change: aligning all 120 of the shipped ones takes most of a build's time. */
export const fewLayers = /mid_block.*attn|up_blocks.1.*attn2/;

/** Writes small adapters beside a configuration that builds a bundle from them within seconds. */
export function writeSmallBuild(folder: string, changes: Partial<BuildConfigInput> = {}): string {
  mkdirSync(join(folder, "sketch"), { recursive: true });
  writeFileSync(join(folder, "flat.safetensors"), serializeSafetensors(adapterTensors("flat.safetensors", fewLayers)));
  writeFileSync(
    join(folder, "sketch/adapter_model.safetensors"),
    serializeSafetensors(adapterTensors("sketch/adapter_model.safetensors", fewLayers)),
  );
  const config = readFileSync(join(pocketFolder, "adapters/sketch/adapter_config.json"));
  writeFileSync(join(folder, "sketch/adapter_config.json"), config);
  const common = { prompt: "crab animal marine", seed: 1 };
  const build: BuildConfigInput = {
    model: pocketFolder,
    adapters: { flat: "flat.safetensors", sketch: "sketch" },
    out: "bundle",
    work: "work",
    tasks: {
      base: { calibration: [common], steps: 2 },
      flat: { calibration: [common], steps: 2 },
      sketch: { calibration: [{ ...common, image: join(pocketFolder, "samples/sketch-crab.png") }], steps: 2 },
    },
    policy: { narrowShare: 1 },
    distill: { adapters: "none" },
    ...changes,
  };
  const path = join(folder, "quad.config.json");
  writeFileSync(path, JSON.stringify(build));
  return path;
}

export const loadSmallBuild = async (folder: string, changes?: Partial<BuildConfigInput>) =>
  loadConfig(writeSmallBuild(folder, changes));

/** SHA-256 of every file below a folder by relative path, and on demand when it was changed. */
export function snapshot(root: string, withTimes = false): Record<string, string> {
  const files = readdirSync(root, { recursive: true, encoding: "utf8" }).filter((path) =>
    statSync(join(root, path)).isFile(),
  );
  return Object.fromEntries(
    files.sort().map((path) => {
      const file = join(root, path);
      const hash = createHash("sha256").update(readFileSync(file)).digest("hex");
      return [path, withTimes ? `${hash} ${statSync(file).mtimeMs}` : hash];
    }),
  );
}
