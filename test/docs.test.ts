import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import type { Schema } from "@quad-lora/base";
import { slotsFileSchema, tasksFileSchema } from "@quad-lora/runtime";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "zod/v4/core";
import { readAblation } from "../packages/quad/src/records/ablation.ts";
import { readProfile } from "../packages/quad/src/records/profile.ts";
import { loadConfig } from "../packages/quad/src/settings/config.ts";
import { distillSchema } from "../packages/quad/src/settings/distill.ts";
import { policySchema } from "../packages/quad/src/settings/policy.ts";
import { tuneSchema } from "../packages/quad/src/settings/tune.ts";
import { adapterRecordSchema, manifestSchema } from "../packages/runtime/src/manifest.ts";
import { signatureSchema } from "../packages/runtime/src/signature.ts";
import { hasChromium } from "./helpers/chromium.ts";
import { findLinks, findSnippets, headingFragments, type Snippet } from "./helpers/markdown.ts";
import { temporaryFolder } from "./helpers/models.ts";
import { runInChromium } from "./helpers/snippet-page.ts";
import { compile, createSnippetWorkspace, type Outcome, runModule, runShell } from "./helpers/snippet-workspace.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const full = process.env.QUAD_FULL_TESTS === "1";
const slow = 60 * 60_000;

const inFolder = (folder: string, ending: string) =>
  readdirSync(join(root, folder))
    .map((name) => join(folder, name + (ending.startsWith("/") ? ending : "")))
    .filter((path) => path.endsWith(".md") && existsSync(join(root, path)));
const documents = ["README.md", ...inFolder("docs", ".md"), ...inFolder("packages", "/README.md")];
const textOf = (path: string) => readFileSync(join(root, path), "utf8");

/** What reads the JSON snippets that say what they are; a reader rejects what is not as the format asks. */
const readers: Record<string, (path: string) => Promise<unknown>> = {
  "quad-slots": bySchema(slotsFileSchema),
  "quad-tasks": bySchema(tasksFileSchema),
  "quad-bundle": bySchema(manifestSchema),
  "quad-bundle-adapter": bySchema(adapterRecordSchema),
  "quad-signature": bySchema(signatureSchema),
  "quad-profile": readProfile,
  "quad-ablation": readAblation,
  "quad-training-curve": async (path) => JSON.parse(readFileSync(path, "utf8")),
};

function bySchema(schema: Schema): (path: string) => Promise<unknown> {
  return async (path) => parse(schema, JSON.parse(readFileSync(path, "utf8")));
}

describe.each(documents)("%s", (document) => {
  const snippets = findSnippets(textOf(document));
  const runnable = snippets.filter(({ language }) => language !== "");

  test("links lead somewhere", () => {
    for (const link of findLinks(textOf(document))) {
      if (/^https?:/.test(link)) continue;
      const [path, fragment] = link.split("#") as [string, string?];
      const target = path === "" ? document : relative(root, join(root, dirname(document), path));
      expect(existsSync(join(root, target)), `${link} in ${document}`).toBe(true);
      if (fragment) expect(headingFragments(textOf(target)), `${link} in ${document}`).toContain(fragment);
    }
  });

  test("every snippet is found, and those that do not run say why", () => {
    expect(runnable).toHaveLength(textOf(document).match(/^ *```[a-z]+$/gm)?.length ?? 0);
    for (const { language, marks, line } of runnable) {
      expect(["sh", "ts", "json"], `line ${line}`).toContain(language);
      for (const key of marks.keys()) expect(["not run", "slow", "file"], `line ${line}`).toContain(key);
    }
  });

  if (runnable.length === 0) return;

  let workspace: ReturnType<typeof createSnippetWorkspace>;
  let types: Outcome;
  const typescript = new Map(
    snippets.filter(({ language }) => language === "ts").map((snippet) => [sourcePath(snippet), snippet] as const),
  );

  beforeAll(async () => {
    workspace = createSnippetWorkspace();
    const sources = new Map([...typescript].map(([path, { code }]) => [path, code]));
    if (sources.size > 0) types = await compile(workspace.folder, sources);
  });
  afterAll(() => workspace?.remove());

  test.runIf(typescript.size > 0)("the types of its TypeScript fit", () => {
    expect(types).toEqual({ code: 0, output: "" });
  });

  describe.each(runnable)("line $line: $language", (snippet) => {
    const { language, code, marks } = snippet;
    const inPage = code.includes('"onnxruntime-web');
    const skipped = marks.has("not run") || (marks.has("slow") && !full) || (inPage && !hasChromium);

    test.skipIf(skipped)(code.split("\n")[0], { timeout: marks.has("slow") ? slow : 10 * 60_000 }, async () => {
      const file = marks.get("file");
      if (file) {
        mkdirSync(dirname(join(workspace.folder, file)), { recursive: true });
        writeFileSync(join(workspace.folder, file), code);
      }
      if (language === "json") await checkJson(workspace.folder, code, file);
      else if (language === "sh") {
        expectSuccess(await runShell(workspace.folder, code));
        await checkOutputs(workspace.folder, code);
      } else if (language === "ts" && !file) {
        if (inPage) await runInChromium(workspace.folder, sourcePath(snippet));
        else expectSuccess(await runModule(workspace.folder, sourcePath(snippet).replace(/\.ts$/, ".js")));
      }
    });
  });
});

function sourcePath({ marks, line }: Snippet): string {
  return marks.get("file") ?? `snippets/line-${line}.ts`;
}

function expectSuccess({ code, output }: Outcome): void {
  expect(code, output).toBe(0);
}

async function checkJson(folder: string, code: string, file: string | undefined): Promise<void> {
  const { format } = JSON.parse(code);
  const path = join(folder, file ?? "snippet.json");
  writeFileSync(path, code);
  if (/quad\.config\.json$/.test(path)) await loadConfig(path);
  if (format === undefined) return;
  expect(Object.keys(readers), "the formats that the tests know").toContain(format);
  await readers[format](path);
}

/** What commands are told to write has to be there, and pictures have to show something. */
async function checkOutputs(folder: string, code: string): Promise<void> {
  for (const [, path] of code.matchAll(/\s(?:--out|-o|--report)\s+(\S+)/g)) {
    const file = join(folder, path!);
    expect(existsSync(file), path).toBe(true);
    if (statSync(file).isDirectory()) expect(readdirSync(file), path).not.toEqual([]);
    else if (file.endsWith(".png")) {
      const { channels } = await sharp(file).stats();
      expect(Math.max(...channels.map(({ stdev }) => stdev)), path).toBeGreaterThan(5);
    } else expect(statSync(file).size, path).toBeGreaterThan(0);
  }
}

/** Keys and defaults in the table of docs/formats.md behind a mark; one row may have several, with commas. */
function defaultsInTable(mark: string): Record<string, unknown> {
  const [, text] = textOf("docs/formats.md").split(`<!-- ${mark} -->\n`);
  const rows = text!.slice(0, text!.indexOf("\n\n")).split("\n").slice(2);
  return Object.fromEntries(
    rows.flatMap((row) => {
      const names = [...row.split("|")[1].matchAll(/`(\w+)`/g)].map(([, name]) => name!);
      const shown = row.split("|")[2].trim().replaceAll("`", "");
      const values = names.length === 1 ? [shown] : shown.split(", ");
      return names.map((name, index) => [name, values[index] === "" ? undefined : JSON.parse(values[index])]);
    }),
  );
}

test.each([
  ["policy", policySchema],
  ["tune", tuneSchema],
  ["distill", distillSchema],
] as const)("docs/formats.md has every key of %s with its default", (mark, schema) => {
  const shown = defaultsInTable(mark);
  expect(Object.keys(shown).sort()).toEqual(Object.keys(schema.shape).sort());
  expect(shown).toEqual(schema.parse({}));
});

test("every command is in the documents", async () => {
  const { output } = await runShell(root, "npx quad --help");
  const commands = [...output.matchAll(/^ {2}([a-z]+) (?:\[options\] )?</gm)].map(([, name]) => name!);
  expect(commands).toEqual(expect.arrayContaining(["expose", "build", "run", "eval"]));
  const texts = documents.map(textOf).join("\n");
  for (const command of commands) expect(texts, command).toMatch(new RegExp(`quad ${command}\\b`));
});

describe("API reference", () => {
  const folder = temporaryFolder();

  test("every export has a docstring, and every docstring names what exists", async () => {
    const outcome = await runShell(root, "npm run --silent docs -- --check");
    expect(outcome).toEqual({ code: 0, output: "Every export has a docstring.\n" });
  });

  test("an export without a docstring is found", async () => {
    const entry = join(folder, "index.ts");
    writeFileSync(
      entry,
      [
        "/** Has one. */ export function told(): void {}",
        "export function untold(): void {}",
        "/** See {@link nowhere}. */ export interface Strays { value: number }",
      ].join("\n"),
    );
    const tsconfig = join(folder, "tsconfig.json");
    writeFileSync(tsconfig, JSON.stringify({ compilerOptions: { types: [] }, files: [entry] }));
    // Plain JavaScript without declarations, as all scripts.
    const { readReference } = await import(String(new URL("../scripts/api-reference/reference.mjs", import.meta.url)));
    const { problems } = await readReference([entry], { tsconfig });
    expect(problems).toHaveLength(2);
    expect(problems[0]).toContain("function untold has no docstring");
    expect(problems[1]).toContain("nowhere");
  });
});
