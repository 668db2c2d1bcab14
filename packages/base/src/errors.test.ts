import fc from "fast-check";
import { expect, test } from "vitest";
import { InputError } from "./errors.ts";

test("the message says what, where, what was expected and found, and the way out", () => {
  const problem = { what: "does not fit", file: "a.json", where: "rank", expected: "4", got: "8", fix: "Use another." };
  expect(new InputError(problem).message).toBe("a.json: rank: does not fit (expected 4, got 8). Use another.");
  expect(new InputError({ what: "is missing" }).message).toBe("is missing");
  expect(new InputError(problem).problem).toEqual(problem);
});

test("whatever stands in a damaged file, the message is one line that commands no terminal", () => {
  expect(new InputError({ what: "x", where: "\u001b[31mred\u001b]0;title\u0007" }).message).toBe(
    "\\u001b[31mred\\u001b]0;title\\u0007: x",
  );
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), (where, got) => {
      expect(new InputError({ what: "x", where, got }).message).not.toMatch(/\p{Cc}/u);
    }),
    { seed: 3 },
  );
});
