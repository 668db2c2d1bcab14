/**
 * Whether a stranger's regular expression can be run: whether matching takes time that is at most cubic in the text, by a rule
 * that can be read off its source. Inside a repeated group nothing may repeat and nothing may be an alternative (both can
 * match one text in exponentially many ways), there are no back references, and no branch repeats without limit more than
 * `mostRepeats` times. Patterns of tokenizers and PEFT configurations are simpler than that.
 * @param source - without delimiters; whether it is valid at all is for `RegExp` to say
 */
export function isBoundedPattern(source: string): boolean {
  if (source.length > 4000) return false;
  /** Per open group: unlimited repeats in the branch so far, and whether anything in it repeats or is an alternative. */
  const groups = [{ repeats: 0, isComplex: false }];
  for (let at = 0; at < source.length; at++) {
    const character = source[at];
    const group = groups[groups.length - 1];
    if (character === "\\") {
      if (/[1-9k]/.test(source[at + 1] ?? "")) return false;
      at = /[pP]/.test(source[at + 1] ?? "") && source[at + 2] === "{" ? endOf(source, at + 2, "}") : at + 1;
    } else if (character === "[") {
      at = endOfClass(source, at);
    } else if (character === "(") {
      groups.push({ repeats: 0, isComplex: false });
    } else if (character === "|") {
      group.isComplex = true;
      group.repeats = 0;
    } else if (character === ")") {
      if (groups.length === 1) return false;
      groups.pop();
      const outer = groups[groups.length - 1];
      const repeat = repeatAt(source, at + 1);
      if (repeat > 1 && group.isComplex) return false;
      outer.isComplex ||= group.isComplex;
      outer.repeats += group.repeats;
      if (outer.repeats > mostRepeats) return false;
    } else if (repeatAt(source, at) > 1) {
      group.isComplex = true;
      if (repeatAt(source, at) === Number.POSITIVE_INFINITY && ++group.repeats > mostRepeats) return false;
    }
  }
  return groups.length === 1;
}

const mostRepeats = 3;

/** How often the quantifier at a place lets something match; 1 where there is none. */
function repeatAt(source: string, at: number): number {
  if (source[at] === "*" || source[at] === "+") return Number.POSITIVE_INFINITY;
  const counted = /^\{(\d+)(?:(,)(\d*))?\}/.exec(source.slice(at, at + 24));
  if (!counted) return 1;
  const [, least, comma, most] = counted;
  if (!comma) return Number(least);
  return most === "" ? Number.POSITIVE_INFINITY : Number(most);
}

function endOf(source: string, from: number, character: string): number {
  const end = source.indexOf(character, from);
  return end === -1 ? source.length : end;
}

/** The bracket that closes a character class; with the `v` flag classes nest, which counts as unreadable here. */
function endOfClass(source: string, from: number): number {
  for (let at = from + 1; at < source.length; at++) {
    if (source[at] === "\\") at++;
    else if (source[at] === "]" && at > from + 1) return at;
  }
  return source.length;
}
