import { existsSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { openModelFolder } from "../model/model-folder.ts";
import type { Evaluation } from "../records/evaluation.ts";

/**
 * Bytes on disk: adapters by name, and everything else that makes up the folder.
 *
 * @param originals - where adapters lie outside of the folder
 */
export async function storageOf(
  folder: string,
  adapters: readonly string[],
  originals: Readonly<Record<string, string>> = {},
): Promise<Evaluation["candidate"]["storage"]> {
  const { entries } = await openModelFolder(folder);
  const isOwn = existsSync(join(folder, "slots.json"));
  const parts = isOwn ? (await readdir(folder)).filter((name) => name !== "adapters") : entries;
  let base = 0;
  for (const name of parts) base += await bytesOf(join(folder, name));
  const sizes: Record<string, number> = {};
  for (const name of adapters) {
    const path = originals[name] ?? join(folder, "adapters", `${name}.safetensors`);
    if (existsSync(path)) sizes[name] = await bytesOf(path);
  }
  return { base, adapters: sizes };
}

async function bytesOf(path: string): Promise<number> {
  const info = await stat(path);
  if (!info.isDirectory()) return info.size;
  let sum = 0;
  for (const name of await readdir(path)) sum += await bytesOf(join(path, name));
  return sum;
}

export function machineFacts(): Evaluation["machine"] {
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    memoryGB: Number((totalmem() / 1e9).toFixed(1)),
    platform: `${process.platform} ${process.arch}`,
  };
}

export function versionFacts(): Record<string, string> {
  const require = createRequire(import.meta.url);
  return {
    quad: require("../../package.json").version,
    node: process.version,
    "onnxruntime-node": require("onnxruntime-node/package.json").version,
  };
}
