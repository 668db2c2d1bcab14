import { describe, expect, test } from "vitest";
import { formatDuration, formatTable, visible } from "./terminal.ts";

test("control characters are written out, line feeds stay", () => {
  expect(visible("a\u001b]0;title\u0007\nb\u009b2J")).toBe("a\\u001b]0;title\\u0007\nb\\u009b2J");
  expect(visible("größe 猫 \u{1f600}")).toBe("größe 猫 \u{1f600}");
});

test("a name with a line feed does not forge a row of a table", () => {
  const table = formatTable([
    ["key", "state"],
    ["real\nforged  matched", "unmatched"],
  ]);
  expect(table.split("\n")).toHaveLength(3);
  expect(table).toContain("real\\u000aforged");
});

describe("a table", () => {
  test("has columns as wide as their widest cell, numbers to the right and no spaces at the ends", () => {
    const table = formatTable([
      ["task", "rank", "note"],
      ["flat", 16, "x"],
      ["a longer name", 8, ""],
    ]);
    expect(table.split("\n")).toEqual([
      "task           rank  note",
      "-------------  ----  ----",
      "flat             16  x",
      "a longer name     8",
    ]);
  });
});

test("durations have two digits of seconds at most below a minute, then minutes", () => {
  const shown = [80, 1249, 9940, 12_300, 59_400, 60_000, 185_000].map(formatDuration);
  expect(shown).toEqual(["0.1 s", "1.2 s", "9.9 s", "12 s", "59 s", "1 min 00 s", "3 min 05 s"]);
});
