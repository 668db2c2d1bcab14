import { InputError } from "@quad-lora/base";
import * as z from "zod";
import { PathPatterns } from "./path-patterns.ts";

/** Where the strength of a file's layers comes from, besides alphas of their own. */
export interface ScaleSource {
  /** @param names - Spellings of the module's path. */
  rankOf(names: readonly string[]): number | undefined;
  alphaOf(names: readonly string[]): number;
  /** What a change is multiplied by. */
  scale(alpha: number, rank: number): number;
}

const patternSchema = z.record(z.string(), z.unknown()).nullish();

/** What PEFT's configurations say about scaling, with its defaults; other members do not change how weights are read. */
const configSchema = z.object({
  peft_type: z.string().nullish(),
  r: z.int().positive().default(8),
  lora_alpha: z.number().optional(),
  /** As LoHa and LoKr call it. */
  alpha: z.number().optional(),
  rank_pattern: patternSchema,
  alpha_pattern: patternSchema,
  use_rslora: z.boolean().nullish(),
  use_dora: z.boolean().nullish(),
  use_qalora: z.boolean().nullish(),
  init_lora_weights: z.unknown().optional(),
});

const numbersSchema = z.record(z.string(), z.number());
const readTypes = ["LORA", "ADALORA", "LOHA", "LOKR"];

/** Initialisations that also change the base weights, so that the factors fit only the changed base. */
const baseChangingInitialisations = /^(pissa|olora|corda)/;

/** Ranks and scales of a PEFT adapter. */
export class PeftConfig implements ScaleSource {
  readonly #config: z.infer<typeof configSchema>;
  readonly #ranks: PathPatterns;
  readonly #alphas: PathPatterns;

  /**
   * @param json - The parsed `adapter_config.json`, or the same members from elsewhere.
   * @throws InputError for malformed configurations and for methods other than those that are read.
   */
  constructor(json: unknown, file: string) {
    const config = parse(configSchema, json, file);
    this.#config = config;
    refuseOtherMethods(config, file);
    if (!this.#hasFixedRanks) this.#ranks = new PathPatterns({}, file, "rank_pattern");
    else this.#ranks = patternsOf(config.rank_pattern, file, "rank_pattern");
    this.#alphas = patternsOf(config.alpha_pattern, file, "alpha_pattern");
  }

  /** AdaLoRA's ranks come from training: its pattern lists which of them are left, not how many. */
  get #hasFixedRanks(): boolean {
    return this.#config.peft_type !== "ADALORA";
  }

  rankOf(names: readonly string[]): number | undefined {
    return this.#hasFixedRanks ? (this.#ranks.find(names) ?? this.#config.r) : undefined;
  }

  alphaOf(names: readonly string[]): number {
    return this.#alphas.find(names) ?? this.#config.lora_alpha ?? this.#config.alpha ?? 8;
  }

  /** alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (Kalajdzievski, arXiv:2312.03732). */
  scale(alpha: number, rank: number): number {
    return alpha / (this.#config.use_rslora ? Math.sqrt(rank) : rank);
  }
}

function refuseOtherMethods(config: z.infer<typeof configSchema>, file: string): void {
  const { peft_type: type, use_dora: isDora, use_qalora: isQalora, init_lora_weights: initialisation } = config;
  if (isDora || isQalora || (type && !readTypes.includes(type)))
    throw new InputError({
      what: `${isDora ? "DoRA" : isQalora ? "QALoRA" : type} adapters are not supported`,
      file,
      where: isDora ? "use_dora" : isQalora ? "use_qalora" : "peft_type",
      expected: readTypes.join(", "),
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

function patternsOf(table: z.infer<typeof patternSchema>, file: string, where: string): PathPatterns {
  const numbers = parse(numbersSchema, table ?? {}, file, where);
  const wrong = where === "rank_pattern" && Object.entries(numbers).find(([, rank]) => !(rank > 0));
  if (wrong)
    throw new InputError({ what: "a rank has to be above 0", file, where: `${where}.${wrong[0]}`, got: `${wrong[1]}` });
  return new PathPatterns(numbers, file, where);
}

function parse<S extends z.ZodType>(schema: S, json: unknown, file: string, where?: string): z.infer<S> {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const path = [where, ...issue.path].filter((part) => part !== undefined).join(".");
  throw new InputError({ what: issue.message, file, where: path || undefined });
}
