import { InputError } from "@quad-lora/base";
import * as z from "zod/mini";
import { clipTokenizer } from "./clip-tokenizer.ts";
import { tokenizerConfigSchema } from "./configs.ts";
import { type FolderFiles, readJson } from "./files.ts";

/** Turns prompts into the text encoder's input. */
export interface PromptTokenizer {
  readonly maxLength: number;
  /** Token numbers, truncated with the end token kept and padded: always `maxLength` of them. */
  encode(prompt: string): number[];
  /** The same, and 1 for every token of the prompt, 0 for padding. */
  encodeMasked(prompt: string): { ids: number[]; mask: number[] };
}

/** Which tokenizer of a folder, and how long its prompts are. */
export interface TokenizerOptions {
  /** Folder; `tokenizer` by default. */
  folder?: string;
  /** Tokens per prompt, whatever the tokenizer's configuration says. */
  tokens?: number;
}

/**
 * Loads `tokenizer/tokenizer.json`, or CLIP's older `vocab.json` and `merges.txt`.
 *
 * @param defaultLength - tokens per prompt where `tokenizer_config.json` says nothing useful
 * @throws InputError when there is no tokenizer, or it has no padding token
 */
export async function loadTokenizer(
  files: FolderFiles,
  defaultLength: number,
  { folder = "tokenizer", tokens }: TokenizerOptions = {},
): Promise<PromptTokenizer> {
  const configPath = `${folder}/tokenizer_config.json`;
  const config = (await files.exists(configPath)) ? await readJson(files, configPath, tokenizerConfigSchema) : {};
  // A third of the runtime's bytes, and of no use to a page before it opens a model.
  const { openTokenizerJson } = await import("./tokenizer-json.ts");
  const file = files.describe(`${folder}/tokenizer.json`);
  const { encode, numberOf: id } = openTokenizerJson(await tokenizerJson(files, folder), config, file);
  const end = id(config.eos_token);
  const padding = id(config.pad_token) ?? end;
  if (padding === undefined) {
    throw new InputError({
      what: "no padding token",
      file: files.describe(configPath),
      where: "pad_token",
      fix: "Name a token of the vocabulary to pad prompts with.",
    });
  }
  // transformers writes 1e30 for "no limit".
  const configured = config.model_max_length;
  const maxLength = tokens ?? (configured !== undefined && configured <= 65536 ? configured : defaultLength);
  const encodeMasked = (prompt: string) => {
    let ids = encode(prompt);
    if (ids.length > maxLength) {
      ids = ids.at(-1) === end ? [...ids.slice(0, maxLength - 1), end!] : ids.slice(0, maxLength);
    }
    const spare = maxLength - ids.length;
    return {
      ids: [...ids, ...new Array<number>(spare).fill(padding)],
      mask: [...ids.map(() => 1), ...new Array<number>(spare).fill(0)],
    };
  };
  return { maxLength, encode: (prompt) => encodeMasked(prompt).ids, encodeMasked };
}

async function tokenizerJson(files: FolderFiles, folder: string): Promise<object> {
  const path = `${folder}/tokenizer.json`;
  if (await files.exists(path)) return readJson(files, path, z.looseObject({ model: z.looseObject({}) }));
  const [vocabulary, merges] = [`${folder}/vocab.json`, `${folder}/merges.txt`];
  if ((await files.exists(vocabulary)) && (await files.exists(merges))) {
    return clipTokenizer(
      await readJson(files, vocabulary, z.record(z.string(), z.int())),
      new TextDecoder().decode(await files.read(merges)),
      files.describe(vocabulary),
    );
  }
  throw new InputError({
    what: "is missing",
    file: files.describe(path),
    fix: "Save the model's tokenizer with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER).",
  });
}
