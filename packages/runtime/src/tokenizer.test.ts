import { readFileSync } from "node:fs";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import type { FolderFiles } from "./files.ts";
import { loadTokenizer } from "./tokenizer.ts";

const pocket = new URL("../../../models/pocket/tokenizer/", import.meta.url);

function memoryFiles(contents: Record<string, string>): FolderFiles {
  return {
    read: async (path) => new TextEncoder().encode(contents[path]),
    exists: async (path) => contents[path] !== undefined,
    list: async () => [],
    describe: (path) => `memory/${path}`,
  };
}

describe("a tokenizer.json of words", async () => {
  const json = readFileSync(new URL("tokenizer.json", pocket), "utf8");
  const config = readFileSync(new URL("tokenizer_config.json", pocket), "utf8");
  const { vocab } = JSON.parse(json).model as { vocab: Record<string, number> };
  const tokenizer = await loadTokenizer(
    memoryFiles({ "tokenizer/tokenizer.json": json, "tokenizer/tokenizer_config.json": config }),
    77,
  );
  const padded = (ids: number[]) => [...ids, ...new Array(16 - ids.length).fill(0)];

  test("start, words in lower case, end, padding", () => {
    expect(tokenizer.encode("Dog, FACE!")).toEqual(padded([2, vocab.dog!, vocab.face!, 3]));
  });

  test("an empty prompt is start and end", () => {
    expect(tokenizer.encode("")).toEqual(padded([2, 3]));
  });

  test("unknown words get the unknown token", () => {
    expect(tokenizer.encode("dog qqqqq")).toEqual(padded([2, vocab.dog!, 1, 3]));
  });

  test("a long prompt keeps its beginning and the end token", () => {
    expect(tokenizer.encode("dog ".repeat(40))).toEqual([2, ...new Array(14).fill(vocab.dog!), 3]);
  });
});

describe("CLIP's vocab.json and merges.txt", async () => {
  // "low" merges fully, "lower" to "lo" and "wer", as the merges say; every single character is there too.
  const tokens = [..."lower!1", ..."lower!1".split("").map((c) => `${c}</w>`), "lo", "low</w>", "er</w>", "wer</w>"];
  const vocabulary = Object.fromEntries(
    [...tokens, "<|startoftext|>", "<|endoftext|>"].map((token, id) => [token, id]),
  );
  const merges = "#version: 0.2\nl o\ne r</w>\nw er</w>\nlo w</w>\n";
  const files = {
    "tokenizer/vocab.json": JSON.stringify(vocabulary),
    "tokenizer/merges.txt": merges,
    "tokenizer/tokenizer_config.json": JSON.stringify({
      model_max_length: 8,
      eos_token: { content: "<|endoftext|>" },
      pad_token: "<|endoftext|>",
    }),
  };
  const start = vocabulary["<|startoftext|>"];
  const end = vocabulary["<|endoftext|>"];
  const tokenizer = await loadTokenizer(memoryFiles(files), 77);

  test("merges, single digits, punctuation on its own, padding", () => {
    const expected = [
      start,
      ...["low</w>", "lo", "wer</w>", "1</w>", "!</w>"].map((token) => vocabulary[token]),
      end,
      end,
    ];
    expect(tokenizer.encode("  LOW   lower1!")).toEqual(expected);
  });

  test("truncation keeps the end token", () => {
    expect(tokenizer.encode("low ".repeat(20))).toEqual([start, ...new Array(6).fill(vocabulary["low</w>"]), end]);
  });

  test("another vocabulary is refused", async () => {
    const loading = loadTokenizer(memoryFiles({ ...files, "tokenizer/vocab.json": '{"a": 0}' }), 77);
    await expect(loading).rejects.toThrow(/memory\/tokenizer\/vocab.json: this is not CLIP's vocabulary/);
  });
});

test("a folder without tokenizer says how to get one", async () => {
  const loading = loadTokenizer(memoryFiles({}), 77);
  await expect(loading).rejects.toThrow(InputError);
  await expect(loading).rejects.toThrow(/memory\/tokenizer\/tokenizer.json: is missing.*AutoTokenizer/);
});
