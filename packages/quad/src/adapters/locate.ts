import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, extname, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { PeftConfig } from "./peft-config.ts";

const configName = "adapter_config.json";
const peftWeights = "adapter_model.safetensors";
const diffusersWeights = "pytorch_lora_weights.safetensors";

/** Where an adapter's parts lie. */
export interface AdapterFiles {
  readonly weights: string;
  /** PEFT's configuration, where there is one beside the weights. */
  readonly config?: string;
  readonly defaultName: string;
}

/**
 * Finds the files of an adapter, given as a safetensors file or as a folder that PEFT or diffusers saved.
 * @throws InputError where the path or a part is missing, or the weights are pickled.
 */
export async function locateAdapter(path: string): Promise<AdapterFiles> {
  const kind = await stat(path).catch(() => undefined);
  if (!kind) throw new InputError({ what: "the adapter does not exist", file: path, fix: "Check the path." });
  if (!kind.isDirectory()) {
    if (/\.(ckpt|pt|pth|bin)$/i.test(path))
      throw new InputError({
        what: "pickled weights are not read, as loading them may run code",
        file: path,
        expected: "a .safetensors file",
        fix: "Convert it to safetensors.",
      });
    const files = await readdir(dirname(path));
    const isNamedByFolder = [peftWeights, diffusersWeights].includes(basename(path));
    return {
      weights: path,
      config: files.includes(configName) ? join(dirname(path), configName) : undefined,
      defaultName: isNamedByFolder ? basename(dirname(resolve(path))) : basename(path, extname(path)),
    };
  }
  const files = await readdir(path);
  const weights = [peftWeights, diffusersWeights].find((name) => files.includes(name));
  if (!weights || (weights === peftWeights && !files.includes(configName)))
    throw new InputError({
      what: "the folder holds no complete adapter",
      file: path,
      expected: `${configName} with ${peftWeights}, or ${diffusersWeights}`,
      got: files.slice(0, 5).join(", ") || "an empty folder",
      fix: "Give the .safetensors file itself, or save the adapter again.",
    });
  return {
    weights: join(path, weights),
    config: files.includes(configName) ? join(path, configName) : undefined,
    defaultName: basename(resolve(path)),
  };
}

/** Reads and checks an `adapter_config.json`. */
export async function readPeftConfig(path: string): Promise<PeftConfig> {
  const text = await readFile(path, "utf8");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new InputError({ what: `not JSON: ${(error as Error).message.split("\n")[0]}`, file: path });
  }
  return new PeftConfig(json, path);
}
