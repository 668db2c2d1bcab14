import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
/** What commands write, and what snippets may change: a workspace has its own. */
const own = new Set([".git", ".quad", "bundle", "exposed", "demo-output", "models"]);

/** A copy of the checkout to run snippets in, whose code and dependencies are links: the command line as built in `dist`. */
export function createSnippetWorkspace(): { folder: string; remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), "quad-snippets-"));
  for (const entry of readdirSync(root)) {
    if (!own.has(entry)) symlinkSync(join(root, entry), join(folder, entry));
  }
  cpSync(join(root, "models/pocket"), join(folder, "models/pocket"), { recursive: true });
  return { folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}

export interface Outcome {
  code: number;
  /** Standard output and standard error. */
  output: string;
}

// npx: the program it would find is on the PATH, and starting npx takes longer than most commands.
// npm run build: npm test has built, and other test files are using the result.
const shims = `
npx() { "$@"; }
npm() { if [ "$*" != "run build" ]; then command npm "$@"; fi; }
`;

/** Runs a shell snippet in the checkout's own programs, ending at the first command that fails. */
export function runShell(folder: string, code: string): Promise<Outcome> {
  return run(folder, "bash", ["-c", `set -euo pipefail${shims}${code}`]);
}

/** Runs an ES module that was compiled into the workspace. */
export function runModule(folder: string, path: string): Promise<Outcome> {
  return run(folder, process.execPath, [path]);
}

/** Puts TypeScript files (path: content) into the workspace, checks their types and compiles them in place. */
export function compile(folder: string, files: ReadonlyMap<string, string>): Promise<Outcome> {
  for (const [path, content] of files) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), content);
  }
  const config = {
    compilerOptions: {
      target: "ES2023",
      lib: ["ES2023", "DOM", "DOM.Iterable"],
      module: "NodeNext",
      moduleDetection: "force",
      strict: true,
      skipLibCheck: true,
      types: ["node"],
    },
    files: [...files.keys()],
  };
  writeFileSync(join(folder, "tsconfig.snippets.json"), JSON.stringify(config));
  return run(folder, "tsc", ["-p", "tsconfig.snippets.json"]);
}

function run(cwd: string, program: string, parameters: string[]): Promise<Outcome> {
  const path = `${join(root, "node_modules/.bin")}${delimiter}${process.env.PATH}`;
  return new Promise((resolve) => {
    execFile(
      program,
      parameters,
      { cwd, env: { ...process.env, PATH: path, NODE_ENV: "", VITEST: "" }, maxBuffer: 1 << 26 },
      (error, stdout, stderr) => {
        const code = error ? (typeof error.code === "number" ? error.code : -1) : 0;
        resolve({ code, output: stdout + stderr });
      },
    );
  });
}
