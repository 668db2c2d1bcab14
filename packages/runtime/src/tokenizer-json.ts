import { Tokenizer } from "@huggingface/tokenizers";
import { InputError, isBoundedPattern } from "@quad-lora/base";

/** Characters of the longest text that is split into tokens. */
export const longestPrompt = 20_000;

/** A `tokenizer.json` from outside, opened: its errors name the file, its patterns end in time. */
export interface OpenedTokenizer {
  /** All token numbers of a text, special tokens included. */
  encode(text: string): number[];
  /** Number of a token of the vocabulary. */
  numberOf(token: string | null | undefined): number | undefined;
}

/**
 * Opens the content of a `tokenizer.json`.
 *
 * @param config - content of `tokenizer_config.json`
 * @param file - how to name it in messages
 * @throws InputError when it is not a tokenizer, or holds a regular expression that could run without end; from `encode`
 *   also for texts of more than {@link longestPrompt} characters
 */
export function openTokenizerJson(json: object, config: object, file: string): OpenedTokenizer {
  refuseUnboundedPatterns(json, file);
  const guarded = <Result>(work: () => Result): Result => {
    try {
      return work();
    } catch (error) {
      if (error instanceof InputError) throw error;
      throw new InputError({
        what: "is not a tokenizer that can be used",
        file,
        got: (error as Error)?.message ?? String(error),
        fix: "Save the model's tokenizer again with transformers' save_pretrained.",
      });
    }
  };
  const tokenizer = guarded(() => new Tokenizer(json, config));
  return {
    encode: (text) => {
      if (text.length > longestPrompt) {
        throw new InputError({
          what: "the prompt is too long",
          expected: `at most ${longestPrompt} characters`,
          got: String(text.length),
          fix: "Shorten it: models read some 75 to 500 tokens.",
        });
      }
      return guarded(() => {
        const { ids } = tokenizer.encode(text);
        if (!ids.every((id: number) => Number.isSafeInteger(id) && id >= 0))
          throw new Error("token numbers that are not integers");
        return ids;
      });
    },
    numberOf: (token) => {
      const id = token == null ? undefined : guarded(() => tokenizer.token_to_id(token));
      return Number.isSafeInteger(id) ? id : undefined;
    },
  };
}

/** `tokenizer.json` writes its expressions as `{ "Regex": "..." }`, wherever normalizers and splitters are. */
function refuseUnboundedPatterns(json: object, file: string): void {
  const pending: unknown[] = [json];
  while (pending.length > 0) {
    const value = pending.pop();
    if (typeof value !== "object" || value === null) continue;
    // A vocabulary is large and has no patterns.
    const entries = Object.entries(value).filter(([key]) => key !== "vocab" && key !== "merges");
    for (const [key, item] of entries) {
      if (key === "Regex" && typeof item === "string" && !isBoundedPattern(item)) {
        throw new InputError({
          what: "has a regular expression that could run without end",
          file,
          got: item.length > 200 ? `${item.slice(0, 200)}...` : item,
          fix: "Use the tokenizer of the model's original publisher.",
        });
      }
      pending.push(item);
    }
  }
}
