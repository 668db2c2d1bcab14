import { expect, test } from "vitest";
import { formatTable, visible } from "./terminal.ts";

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
