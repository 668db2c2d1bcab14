import { InputError } from "@quad-lora/base";
import type { SafetensorsReader } from "../files/safetensors.ts";
import { parseKey } from "./keys.ts";
import type { KeyGroup } from "./layer-tensors.ts";
import type { ReportBuilder } from "./report-builder.ts";

/**
 * Puts the tensors of every layer of a file together. Keys that are no part of any go into the report.
 * @throws InputError for methods that cannot be read, by name, and for a tensor of unknown meaning among a layer's factors:
 * the product without it would be another one than was trained
 */
export function groupKeys(reader: SafetensorsReader, report: ReportBuilder): KeyGroup[] {
  const groups = new Map<string, KeyGroup>();
  const unknown: string[] = [];
  for (const key of reader.entries.keys()) {
    const parsed = parseKey(key);
    if (parsed.kind === "refused") throw refusal(reader, key, `${parsed.method} adapters are not supported`);
    if (parsed.kind === "unsupported") {
      report.unmatched.push({ key, reason: parsed.reason });
      if (!parsed.isKnown) unknown.push(key);
      continue;
    }
    const { module, part, format } = parsed;
    const group = groups.get(module) ?? { path: module, keys: new Map(), format };
    groups.set(module, group);
    const earlier = group.keys.get(part);
    if (earlier) report.mismatched.push({ key, module, expected: `one ${part} tensor`, got: `also ${earlier}` });
    else group.keys.set(part, key);
    group.format ??= format;
  }
  const part = unknown.find((key) => isWithin(key, groups));
  if (part) throw refusal(reader, part, "the layer has a tensor besides its factors, of a method that is not known");
  return [...groups.values()];
}

/** Whether a key names something inside of a layer that has factors. */
function isWithin(key: string, groups: ReadonlyMap<string, KeyGroup>): boolean {
  for (let dot = key.lastIndexOf("."); dot > 0; dot = key.lastIndexOf(".", dot - 1)) {
    const group = groups.get(key.slice(0, dot));
    if (group && [...group.keys.keys()].some((part) => part !== "alpha")) return true;
  }
  return false;
}

function refusal(reader: SafetensorsReader, key: string, what: string): InputError {
  return new InputError({
    what,
    file: reader.path,
    where: key,
    expected: "LoRA, LoCon, LoHa, LoKr or AdaLoRA",
    fix: "Convert it to a LoRA (by extracting one from the merged weights), or use another file.",
  });
}
