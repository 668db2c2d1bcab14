/** What an {@link InputError} says: the problem first, then where it is, what was expected, and the way out. */
export interface InputProblem {
  /** What is wrong, as a sentence without a full stop. */
  what: string;
  /** File (or URL) that holds the problem. */
  file?: string;
  /** Key, tensor or node inside the file. */
  where?: string;
  expected?: string;
  got?: string;
  /** What the reader can do about it. */
  fix?: string;
}

/**
 * Bad input from outside: a broken file, an unknown name, a shape that does not fit.
 * The message is one line, and the command line prints it without a stack trace.
 */
export class InputError extends Error {
  override readonly name = "InputError";
  readonly problem: InputProblem;

  constructor(problem: InputProblem) {
    const place = [problem.file, problem.where].filter(Boolean).join(": ");
    const contrast = [
      problem.expected !== undefined ? `expected ${problem.expected}` : "",
      problem.got !== undefined ? `got ${problem.got}` : "",
    ]
      .filter(Boolean)
      .join(", ");
    const head = `${place ? `${place}: ` : ""}${problem.what}${contrast ? ` (${contrast})` : ""}`;
    super(onOneLine(problem.fix ? `${head}. ${problem.fix}` : head));
    this.problem = problem;
  }
}

/** Names from damaged files can hold anything: control characters would break the line or command the terminal. */
function onOneLine(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
