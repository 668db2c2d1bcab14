import { InputError } from "@quad-lora/base";
import * as z from "zod";
import type { AdapterComponent } from "./types.ts";

const patternSchema = z.record(z.string(), z.number().positive()).nullish();

/** What PEFT's `LoraConfig` says about scaling, with its defaults; other members do not change how weights are read. */
const configSchema = z.object({
  peft_type: z.string().nullish(),
  r: z.int().positive().default(8),
  lora_alpha: z.number().default(8),
  rank_pattern: patternSchema,
  alpha_pattern: z.record(z.string(), z.number()).nullish(),
  use_rslora: z.boolean().nullish(),
  use_dora: z.boolean().nullish(),
  init_lora_weights: z.unknown().optional(),
});

/** Initialisations that also change the base weights, so that the factors fit only the changed base. */
const baseChangingInitialisations = /^(pissa|olora|corda)/;

/** Ranks and scales of a PEFT adapter. */
export class PeftConfig {
  readonly #config: z.infer<typeof configSchema>;
  readonly #file: string;

  /**
   * @param json - The parsed `adapter_config.json`, or the same members from elsewhere.
   * @throws InputError for malformed configurations and for methods other than LoRA.
   */
  constructor(json: unknown, file: string) {
    const parsed = configSchema.safeParse(json);
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      throw new InputError({ what: issue.message, file, where: issue.path.join(".") || undefined });
    }
    this.#config = parsed.data;
    this.#file = file;
    const { peft_type: type, use_dora: isDora, init_lora_weights: initialisation } = parsed.data;
    if (isDora || (type && type !== "LORA"))
      throw new InputError({
        what: `${isDora ? "DoRA" : type} adapters are not supported`,
        file,
        where: isDora ? "use_dora" : "peft_type",
        expected: "LORA",
        fix: "Train a plain LoRA, or extract one from the merged weights.",
      });
    if (typeof initialisation === "string" && baseChangingInitialisations.test(initialisation))
      throw new InputError({
        what: `${initialisation} trains against changed base weights`,
        file,
        where: "init_lora_weights",
        fix: "Save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA.",
      });
  }

  /** @param names - Spellings of the module's path; the first pattern that fits any of them holds, as in PEFT. */
  rankOf(names: readonly string[]): number {
    return this.#lookUp(this.#config.rank_pattern, names) ?? this.#config.r;
  }

  alphaOf(names: readonly string[]): number {
    return this.#lookUp(this.#config.alpha_pattern, names) ?? this.#config.lora_alpha;
  }

  /** alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (Kalajdzievski, arXiv:2312.03732). */
  scale(alpha: number, rank: number): number {
    return alpha / (this.#config.use_rslora ? Math.sqrt(rank) : rank);
  }

  #lookUp(patterns: Readonly<Record<string, number>> | null | undefined, names: readonly string[]): number | undefined {
    for (const [pattern, value] of Object.entries(patterns ?? {})) {
      let expression: RegExp;
      try {
        // A pattern is a regular expression for the end of a path, from a dot on.
        expression = new RegExp(`^(?:.*\\.)?(?:${pattern})$`);
      } catch {
        throw new InputError({ what: "a pattern is not a regular expression", file: this.#file, where: pattern });
      }
      if (names.some((name) => expression.test(name))) return value;
    }
    return undefined;
  }
}

/**
 * Configurations that diffusers stores in a safetensors header (`lora_adapter_metadata`), by component: members are
 * prefixed `unet.`, `text_encoder.` and so on; without a prefix they hold for all.
 */
export function configsFromMetadata(
  metadata: Readonly<Record<string, string>>,
  file: string,
): (component: AdapterComponent) => PeftConfig | undefined {
  const text = metadata.lora_adapter_metadata;
  if (text === undefined) return () => undefined;
  const where = `${file}: lora_adapter_metadata`;
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new InputError({ what: "the metadata is not JSON", file, where: "lora_adapter_metadata" });
  }
  const members = z.record(z.string(), z.unknown()).safeParse(json);
  if (!members.success)
    throw new InputError({ what: "the metadata is not an object", file, where: "lora_adapter_metadata" });
  const entries = Object.entries(members.data);
  const cache = new Map<string, PeftConfig | undefined>();
  return (component) => {
    if (!cache.has(component)) {
      const prefix = `${component}.`;
      const own = entries.flatMap(([key, value]) =>
        key.startsWith(prefix) ? [[key.slice(prefix.length), value] as const] : [],
      );
      const chosen = own.length > 0 ? own : entries.some(([key]) => key === "r") ? entries : undefined;
      cache.set(component, chosen && new PeftConfig(Object.fromEntries(chosen), where));
    }
    return cache.get(component);
  };
}
