/** A fenced code block of a Markdown file. */
export interface Snippet {
  /** First line of the code, counted from 1. */
  line: number;
  /** The word behind the fence: `sh`, `ts`, `json`; empty for formulas and diagrams. */
  language: string;
  code: string;
  /** HTML comments right before the fence, as key and text: `<!-- not run: it installs -->`. */
  marks: ReadonlyMap<string, string>;
}

/**
 * The fenced code blocks of a Markdown text, with the marks that say how the tests treat them:
 * - `not run: REASON`: shell snippets are skipped, TypeScript is still type-checked
 * - `slow: REASON`: only with `QUAD_FULL_TESTS`
 * - `file: PATH`: the snippet is a file that later snippets use
 */
export function findSnippets(text: string): Snippet[] {
  const snippets: Snippet[] = [];
  const lines = text.split("\n");
  let marks = new Map<string, string>();
  for (let index = 0; index < lines.length; index++) {
    const mark = /^<!-- ([\w ]+): (.+) -->$/.exec(lines[index]);
    const fence = /^( *)(```+)(\w*)$/.exec(lines[index]);
    if (mark) marks.set(mark[1], mark[2]);
    else if (fence) {
      const start = index + 1;
      const end = lines.indexOf(fence[1] + fence[2], start);
      if (end < 0) throw new Error(`the code block at line ${start} does not end`);
      const indent = fence[1].length;
      const code = lines.slice(start, end).map((line) => line.slice(indent));
      snippets.push({ line: start + 1, language: fence[3], code: `${code.join("\n")}\n`, marks });
      marks = new Map();
      index = end;
    } else if (lines[index].trim() !== "") marks = new Map();
  }
  return snippets;
}

/** Targets of a text's links and images, without those in code blocks. */
export function findLinks(text: string): string[] {
  const prose = text.replace(/^( *)(```+)\w*\n[\s\S]*?^\1\2$/gm, "").replace(/`[^`\n]*`/g, "");
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target!);
}

/** The fragments that GitHub gives to a text's headings. */
export function headingFragments(text: string): Set<string> {
  const prose = text.replace(/^( *)(```+)\w*\n[\s\S]*?^\1\2$/gm, "");
  return new Set(
    [...prose.matchAll(/^#+ (.+)$/gm)].map(([, title]) =>
      title!
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    ),
  );
}
