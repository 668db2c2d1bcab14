import { expect, test } from "vitest";
import { isBoundedPattern } from "./bounded-pattern.ts";

test.each([
  // CLIP, GPT-2, Llama 3 and PEFT.
  "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+",
  "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "\\s+",
  "down_blocks\\.[0-3]\\..*to_(q|k|v)",
  "(?:foo|bar)\\.\\d+",
  "[(+*]+",
  "",
])("%s can be run", (pattern) => expect(isBoundedPattern(pattern)).toBe(true));

test.each([
  "(a+)+$",
  "(a|a)*b",
  "(([a-z0-9_]+)+.?)+!",
  "(?:a*)*",
  "(a{1,9}){2,}",
  "(.*a){20}",
  "((ab)?){30}c|(x|y)+",
  "(a)\\1",
  ".*.*.*.*x",
  "a".repeat(5000),
])("%s is refused", (pattern) => expect(isBoundedPattern(pattern)).toBe(false));
