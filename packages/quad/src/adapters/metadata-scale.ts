import { InputError } from "@quad-lora/base";
import * as z from "zod";
import { PeftConfig, type ScaleSource } from "./peft-config.ts";
import type { AdapterComponent } from "./types.ts";

/** Keys under which trainers put a single alpha into a file's header, for files that have none beside their weights. */
const alphaKeys = ["lora_alpha", "network_alpha", "alpha"];

/** One alpha of a file's metadata. */
export interface MetadataAlpha {
  readonly key: string;
  readonly value: number;
}

/**
 * What a safetensors header says about scaling, by component: diffusers' `lora_adapter_metadata`, a configuration as JSON
 * whose members are prefixed `unet.`, `text_encoder.` and so on or hold for all; or else a plain alpha.
 * @throws InputError where the configuration is not one, or the alpha is not a number
 */
export function scaleFromMetadata(
  metadata: Readonly<Record<string, string>>,
  file: string,
): (component: AdapterComponent) => ScaleSource | undefined {
  const text = metadata.lora_adapter_metadata;
  if (text !== undefined) return configsByComponent(text, file);
  const alpha = alphaFromMetadata(metadata, file);
  const source = alpha && {
    rankOf: () => undefined,
    alphaOf: () => alpha.value,
    scale: (a: number, rank: number) => a / rank,
  };
  return () => source;
}

/** @throws InputError where the alpha is not a number */
export function alphaFromMetadata(metadata: Readonly<Record<string, string>>, file: string): MetadataAlpha | undefined {
  const key = alphaKeys.find((name) => Object.hasOwn(metadata, name));
  if (key === undefined) return undefined;
  const text = metadata[key].trim();
  const value = Number(text);
  if (text !== "" && Number.isFinite(value)) return { key, value };
  if (["", "none", "null"].includes(text.toLowerCase())) return undefined;
  throw new InputError({
    what: "the alpha in the file's metadata is not a number",
    file,
    where: key,
    got: `"${text.slice(0, 40)}"`,
    fix: "Correct the metadata, or save the adapter with an alpha beside every weight.",
  });
}

function configsByComponent(text: string, file: string): (component: AdapterComponent) => PeftConfig | undefined {
  const where = "lora_adapter_metadata";
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new InputError({ what: "the metadata is not JSON", file, where });
  }
  const members = z.record(z.string(), z.unknown()).safeParse(json);
  if (!members.success) throw new InputError({ what: "the metadata is not an object", file, where });
  const entries = Object.entries(members.data);
  const cache = new Map<string, PeftConfig | undefined>();
  return (component) => {
    if (!cache.has(component)) {
      const prefix = `${component}.`;
      const own = entries.flatMap(([key, value]) =>
        key.startsWith(prefix) ? [[key.slice(prefix.length), value] as const] : [],
      );
      const chosen = own.length > 0 ? own : entries.some(([key]) => key === "r") ? entries : undefined;
      cache.set(component, chosen && new PeftConfig(Object.fromEntries(chosen), `${file}: ${where}`));
    }
    return cache.get(component);
  };
}
