import { InputError } from "@quad-lora/base";

/**
 * CLIP's byte-level BPE as a `tokenizer.json`, from the two files that older exports hold instead.
 * Lower case, words end in `</w>`, prompts between `<|startoftext|>` and `<|endoftext|>` (Radford et al., 2021,
 * https://github.com/openai/CLIP, simple_tokenizer.py).
 *
 * @param vocabulary - `vocab.json`: token to number
 * @param merges - `merges.txt`: a version line, then one pair a line, most frequent first
 * @param file - for messages
 * @throws InputError when CLIP's start and end tokens are not in the vocabulary
 */
export function clipTokenizer(vocabulary: Record<string, number>, merges: string, file: string): object {
  const start = "<|startoftext|>";
  const end = "<|endoftext|>";
  for (const token of [start, end]) {
    if (vocabulary[token] !== undefined) continue;
    throw new InputError({
      what: "this is not CLIP's vocabulary",
      file,
      expected: `a token ${token}`,
      fix: "Save the tokenizer as tokenizer.json with transformers.",
    });
  }
  const added = [start, end].map((content) => ({
    id: vocabulary[content],
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "NFC" },
        { type: "Replace", pattern: { Regex: "\\s+" }, content: " " },
        { type: "Lowercase" },
      ],
    },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        {
          type: "Split",
          // Contractions, runs of letters, single digits, runs of anything else; what lies between is dropped.
          pattern: { Regex: "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+" },
          behavior: "Removed",
          invert: true,
        },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    post_processor: {
      type: "RobertaProcessing",
      sep: [end, vocabulary[end]],
      cls: [start, vocabulary[start]],
      trim_offsets: false,
      add_prefix_space: false,
    },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: end,
      continuing_subword_prefix: "",
      end_of_word_suffix: "</w>",
      fuse_unk: false,
      vocab: vocabulary,
      merges: merges
        .split("\n")
        .map((line) => line.trimEnd())
        .filter((line) => line !== "" && !line.startsWith("#version")),
    },
  };
}
