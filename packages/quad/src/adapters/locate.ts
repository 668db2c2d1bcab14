import { readdir, stat } from "node:fs/promises";
import { basename, dirname, extname, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import * as z from "zod";
import { readRecord } from "../files/json.ts";
import { allComponents } from "./names/prefixes.ts";
import { PeftConfig } from "./peft-config.ts";
import type { AdapterComponent } from "./types.ts";

const configName = "adapter_config.json";
const peftWeights = "adapter_model.safetensors";
const diffusersWeights = "pytorch_lora_weights.safetensors";

/** One file of weights and what belongs to it. */
export interface AdapterPartFiles {
  readonly weights: string;
  /** PEFT's configuration, where there is one for these weights. */
  readonly config?: string;
  /** The component that all of the file's layers are of, where its folder says so. */
  readonly component?: AdapterComponent;
}

/** Where an adapter's parts lie. */
export interface AdapterFiles {
  readonly parts: readonly AdapterPartFiles[];
  readonly defaultName: string;
}

/**
 * Finds the files of an adapter, given as a safetensors file or as a folder that PEFT or diffusers saved; PEFT's training
 * scripts save one below `unet/`, `text_encoder/` and so on for every component.
 * @throws InputError where the path or a part is missing, or the weights are pickled.
 */
export async function locateAdapter(path: string): Promise<AdapterFiles> {
  const kind = await stat(path).catch(() => undefined);
  if (!kind) throw new InputError({ what: "the adapter does not exist", file: path, fix: "Check the path." });
  if (!kind.isDirectory()) return locateFile(path);
  const files = await readdir(path);
  const defaultName = basename(resolve(path));
  const own = partIn(path, files);
  if (own) return { parts: [own], defaultName };
  const parts: AdapterPartFiles[] = [];
  for (const component of allComponents) {
    if (!files.includes(component)) continue;
    const folder = join(path, component);
    const part = partIn(folder, await readdir(folder).catch(() => []));
    if (part) parts.push({ ...part, component });
  }
  if (parts.length > 0) return { parts, defaultName };
  throw new InputError({
    what: "the folder holds no complete adapter",
    file: path,
    expected: `${configName} with ${peftWeights}, such folders named after components, or ${diffusersWeights}`,
    got: files.slice(0, 5).join(", ") || "an empty folder",
    fix: "Give the .safetensors file itself, or save the adapter again.",
  });
}

async function locateFile(path: string): Promise<AdapterFiles> {
  if (/\.(ckpt|pt|pth|bin)$/i.test(path))
    throw new InputError({
      what: "pickled weights are not read, as loading them may run code",
      file: path,
      expected: "a .safetensors file",
      fix: "Convert it to safetensors.",
    });
  const folder = dirname(path);
  const name = basename(path);
  const isNamedByFolder = [peftWeights, diffusersWeights].includes(name);
  const part = name === peftWeights ? partIn(folder, await readdir(folder)) : undefined;
  return {
    parts: [part ?? { weights: path }],
    defaultName: isNamedByFolder ? basename(dirname(resolve(path))) : basename(path, extname(path)),
  };
}

/** The adapter that a folder's files are; the configuration belongs to PEFT's own weights alone. */
function partIn(folder: string, files: readonly string[]): AdapterPartFiles | undefined {
  if (files.includes(peftWeights) && files.includes(configName)) {
    const component = allComponents.find((name) => name === basename(resolve(folder)));
    return { weights: join(folder, peftWeights), config: join(folder, configName), component };
  }
  return files.includes(diffusersWeights) ? { weights: join(folder, diffusersWeights) } : undefined;
}

/** Reads and checks an `adapter_config.json`. */
export async function readPeftConfig(path: string): Promise<PeftConfig> {
  return new PeftConfig(await readRecord(path, z.unknown()), path);
}
