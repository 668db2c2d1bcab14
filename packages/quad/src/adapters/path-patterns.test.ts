import fc from "fast-check";
import { expect, test } from "vitest";
import { PathPatterns } from "./path-patterns.ts";
import { failure } from "./testing.ts";

const find = (table: Record<string, number>, ...paths: string[]) =>
  new PathPatterns(table, "f", "rank_pattern").find(paths);
const message = (table: Record<string, number>) =>
  failure(Promise.resolve().then(() => new PathPatterns(table, "f.json", "rank_pattern")));

test("a pattern fits the end of a path from a dot on, and the first one holds", () => {
  expect(find({ to_q: 1 }, "a.to_q")).toBe(1);
  expect(find({ to_q: 1 }, "to_q")).toBe(1);
  expect(find({ to_q: 1 }, "a.into_q")).toBeUndefined();
  expect(find({ "attn1\\.to_[kv]": 1, to_k: 2 }, "b.attn1.to_k")).toBe(1);
  expect(find({ "attn1.to_k": 1 }, "b.attn1xto_k")).toBe(1);
  expect(find({ "attn1\\.to_k": 1 }, "b.attn1xto_k")).toBeUndefined();
  expect(find({ "blocks.[0-3].*": 1 }, "blocks.7.x")).toBeUndefined();
});

test("patterns without operators match as the regular expressions that they are", () => {
  const piece = fc.constantFrom("a", "b", ".", "\\.", "_", "-", "1");
  const path = fc.array(fc.constantFrom("a", "b", ".", "_", "-", "1"), { maxLength: 8 }).map((parts) => parts.join(""));
  fc.assert(
    fc.property(fc.array(piece, { minLength: 1, maxLength: 5 }), path, (pieces, name) => {
      const pattern = pieces.join("");
      expect(find({ [pattern]: 1 }, name) === 1).toBe(new RegExp(`^(?:.*\\.)?(?:${pattern})$`).test(name));
    }),
    { seed: 9, numRuns: 500 },
  );
});

test("patterns that backtrack for ever in other engines are answered", () => {
  const path = `down_blocks.0.${"a".repeat(200)}`;
  for (const pattern of ["(([a-z0-9_]+)+.?)+!", "(a+)+b", "(a|a)*b", "(.*a){20}b"])
    expect(find({ [pattern]: 1 }, path)).toBeUndefined();
  expect(find({ "(a+)+": 1 }, path)).toBe(1);
});

test("what is not a regular expression, needs backtracking, or is beyond all use is refused", async () => {
  expect(await message({ "to_(": 1 })).toMatch(/f\.json: to_\(: a pattern is not a regular expression/);
  expect(await message({ "(?=a)b": 1 })).toMatch(/backtracking/);
  expect(
    await message({
      "((a{100}){9}b?)+": 1,
      ...Object.fromEntries(Array.from({ length: 12 }, (_, i) => [`(x{900})+${i}`, 1])),
    }),
  ).toMatch(/too large \(expected at most 10000 instructions\)/);
});
