import { InvalidArgumentError } from "commander";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import {
  collectPairs,
  collectStrengths,
  parseCount,
  parseNumber,
  parseRank,
  parseSeed,
  parseSlots,
  withOptions,
} from "./arguments.ts";

describe("repeated options", () => {
  test("become a record; a bare name stands for itself, a path may have equals signs", () => {
    expect(collectPairs("b=x=y", collectPairs("a"))).toEqual({ a: "a", b: "x=y" });
    expect(collectStrengths("b", collectStrengths("a=-0.5"))).toEqual({ a: -0.5, b: 1 });
  });

  test.each(["=x", "a=", "base", "a b=x"])("%s is not a pair", (text) => {
    expect(() => collectPairs(text)).toThrow(InvalidArgumentError);
  });

  test("may name nothing twice", () => {
    expect(() => collectPairs("a=y", { a: "x" })).toThrow(/"a" is given twice/);
    expect(() => collectStrengths("a", { a: 1 })).toThrow(/"a" is given twice/);
    for (const text of ["a=", "a=x", "a=1=2", "=1"]) expect(() => collectStrengths(text)).toThrow(InvalidArgumentError);
  });
});

describe("numbers", () => {
  test("are what they say", () => {
    expect([parseNumber("-1.5e2"), parseCount("3"), parseSeed("0")]).toEqual([-150, 3, 0]);
    expect([parseRank("dynamic"), parseRank("8")]).toEqual([{ kind: "dynamic" }, { kind: "fixed", rank: 8 }]);
  });

  test("of another kind are refused", () => {
    for (const text of ["", " ", "x", "1x", "Infinity"]) expect(() => parseNumber(text)).toThrow(InvalidArgumentError);
    for (const text of ["0", "-1", "1.5"]) expect(() => parseCount(text)).toThrow(InvalidArgumentError);
    for (const text of ["-1", "0.5", "1e20"]) expect(() => parseSeed(text)).toThrow(InvalidArgumentError);
    expect(() => parseRank("any")).toThrow(InvalidArgumentError);
  });
});

test("slots are words or a regular expression", () => {
  expect([parseSlots("used"), parseSlots("all")]).toEqual(["used", "all"]);
  expect(parseSlots("attn[12]")).toEqual(/attn[12]/);
  expect(() => parseSlots("(")).toThrow(/regular expression/);
});

test("options take the place of settings, and one that does not fit is named as it was typed", () => {
  const schema = z.strictObject({ steps: z.int().positive(), learningRate: z.number().max(1) });
  const settings = { steps: 4, learningRate: 0.5 };
  expect(withOptions(schema, settings, { steps: 8, learningRate: undefined })).toEqual({ steps: 8, learningRate: 0.5 });
  expect(() => withOptions(schema, settings, { learningRate: 2 })).toThrow(/--learning-rate: .*got 2/);
});
