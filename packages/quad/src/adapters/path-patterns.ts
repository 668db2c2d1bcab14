import { InputError } from "@quad-lora/base";
import { RE2JS } from "re2js";

/** Instructions that all patterns of a file may compile to: what matching costs grows with them. */
const mostInstructions = 10_000;
/** Entries of a table, of which most are plain paths. */
const mostEntries = 10_000;

/**
 * A table of PEFT's, from patterns to numbers: `{"attn1\\.to_[kv]": 8, "to_q": 4}`. A pattern is a regular expression for
 * the end of a module's path, from a dot on. As files come from strangers, expressions are matched in time linear in
 * the path's length (RE2), never by backtracking.
 */
export class PathPatterns {
  readonly #entries: readonly (readonly [matches: (path: string) => boolean, value: number])[];

  /**
   * @param where - The table's place in the file, for messages.
   * @throws InputError for patterns that are not regular expressions, or need backtracking, and for tables beyond all use
   */
  constructor(table: Readonly<Record<string, number>>, file: string, where: string) {
    const entries = Object.entries(table);
    if (entries.length > mostEntries)
      throw new InputError({
        what: "the table has too many patterns",
        file,
        where,
        expected: `at most ${mostEntries}`,
        got: `${entries.length}`,
      });
    let instructions = 0;
    this.#entries = entries.map(([pattern, value]) => {
      const fixed = fixedLength(pattern);
      if (fixed) return [fixed, value];
      const expression = compile(pattern, file);
      instructions += expression.programSize();
      if (instructions > mostInstructions)
        throw new InputError({
          what: "the table's patterns are too large",
          file,
          where,
          expected: `at most ${mostInstructions} instructions`,
          fix: "Name the modules by their paths.",
        });
      return [(path) => expression.test(path), value];
    });
  }

  /**
   * @param paths - Spellings of one module's path.
   * @returns The value of the first pattern that fits any of them, as in PEFT; undefined where none does.
   */
  find(paths: readonly string[]): number | undefined {
    return this.#entries.find(([matches]) => paths.some(matches))?.[1];
  }
}

function compile(pattern: string, file: string): RE2JS {
  try {
    if (pattern.length <= mostInstructions) return RE2JS.compile(`^(?:.*\\.)?(?:${pattern})$`);
  } catch {
    // What is wrong with it is said in terms of the whole expression, which the file does not hold.
  }
  throw new InputError({
    what: "a pattern is not a regular expression, or one that needs backtracking",
    file,
    where: pattern.slice(0, 100),
    fix: "Name the modules by their paths, or use the syntax of RE2.",
  });
}

/**
 * A pattern of word characters, dots and escaped signs is compared character by character, where a plain dot fits any: tables
 * written for every layer have thousands of these.
 */
function fixedLength(pattern: string): ((path: string) => boolean) | undefined {
  if (!/^(?:[\w.-]|\\[^\w])+$/.test(pattern)) return undefined;
  const characters = [...pattern.matchAll(/\\(.)|(.)/gs)].map(
    ([, escaped, plain]) => escaped ?? (plain === "." ? "" : plain),
  );
  return (path) => {
    const start = path.length - characters.length;
    if (start < 0 || (start > 0 && path[start - 1] !== ".")) return false;
    return characters.every((character, i) => character === "" || character === path[start + i]);
  };
}
