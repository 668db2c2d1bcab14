import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build as esbuild } from "esbuild";
import { build as vite } from "vite";
import { describe, expect, test } from "vitest";
import { serveFolders } from "./browser/server.ts";
import { hasChromium, launchChromium } from "./helpers/chromium.ts";
import { temporaryFolder } from "./helpers/models.ts";
import { sourceAlias } from "./helpers/sources.ts";

const packages = fileURLToPath(new URL("../packages", import.meta.url));
const folder = temporaryFolder();

interface Chunk {
  name: string;
  code: string;
  /** Chunks that it cannot start without. */
  imports: string[];
  isEntry: boolean;
}

/** Sizes after gzip, kB: of the code that a page starts with, and of all that it may load later, by chunk. */
interface Size {
  start: number;
  later: [name: string, size: number][];
}

function sizesOf(chunks: readonly Chunk[]): Size {
  const start = new Set<string>();
  const add = (chunk: Chunk) => {
    start.add(chunk.name);
    for (const other of chunks) if (chunk.imports.includes(other.name) && !start.has(other.name)) add(other);
  };
  add(chunks.find(({ isEntry }) => isEntry)!);
  const size = ({ code }: Chunk) => gzipSync(code, { level: 9 }).length / 1000;
  const [first, later] = [chunks.filter(({ name }) => start.has(name)), chunks.filter(({ name }) => !start.has(name))];
  return {
    start: first.reduce((sum, chunk) => sum + size(chunk), 0),
    later: later.map((chunk) => [chunk.name.split("/").at(-1)!, size(chunk)]),
  };
}

type Bundler = (name: string, source: string) => Promise<Size>;

function page(name: string, source: string): string {
  const file = join(folder, name, "main.js");
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, source);
  writeFileSync(join(folder, name, "index.html"), '<!doctype html><script type="module" src="/main.js"></script>');
  return file;
}

const withEsbuild: Bundler = async (name, source) => {
  const { metafile, outputFiles } = await esbuild({
    entryPoints: [page(name, source)],
    ...{ bundle: true, minify: true, splitting: true, format: "esm", write: false, outdir: folder, metafile: true },
    ...{ absWorkingDir: folder, alias: sourceAlias, nodePaths: [join(packages, "../node_modules")] },
  });
  const chunks = Object.entries(metafile.outputs).map(([path, { entryPoint, imports }]) => ({
    name: path,
    code: outputFiles.find((file) => file.path === join(folder, path))!.text,
    imports: imports.filter(({ kind }) => kind === "import-statement").map((other) => other.path),
    // Chunks that are loaded later are entry points, too, but of sources outside of the page.
    isEntry: entryPoint?.endsWith(`${name}/main.js`) ?? false,
  }));
  return sizesOf(chunks);
};

const withVite: Bundler = async (name, source) => {
  const root = dirname(page(name, source));
  const output = await vite({
    configFile: false,
    root,
    logLevel: "error",
    resolve: { alias: sourceAlias },
    build: { write: false },
  });
  const files = [output].flat().flatMap((result) => ("output" in result ? result.output : []));
  return sizesOf(
    files
      .filter((file) => file.type === "chunk")
      .map(({ fileName, code, imports, isEntry }) => ({ name: fileName, code, imports, isEntry })),
  );
};

describe.each([
  ["esbuild", withEsbuild],
  ["Vite", withVite],
])("%s", (bundler, build) => {
  test("a page that draws starts with at most 45 kB, and loads at most 12 kB of tokenizers when it opens a model", async () => {
    const source =
      'import { fetchFiles, openPipeline } from "@quad-lora/runtime"; window.use = [fetchFiles, openPipeline];';
    const { start, later } = await build(`draw-${bundler}`, source);
    expect(start).toBeGreaterThan(20);
    expect(start).toBeLessThanOrEqual(45);
    // Besides, SHA-256 in JavaScript, where a page has no Web Cryptography.
    const sizeOf = (prefix: string) => later.filter(([name]) => name.startsWith(prefix));
    expect([...sizeOf("sha2"), ...sizeOf("tokenizer")]).toHaveLength(later.length);
    expect(sizeOf("tokenizer")).toEqual([
      [expect.any(String), expect.toSatisfy((size: number) => size > 5 && size <= 12)],
    ]);
  });

  test.each(["InputError", "graphHash", "readOnnxAdapter", "resizeNearest", "rgbaFromRgb", "SeededRandom"])(
    "importing %s alone takes at most 3 kB",
    async (name) => {
      const source = `import { ${name} } from "@quad-lora/runtime"; window.use = ${name};`;
      const { start } = await build(`${name}-${bundler}`, source);
      expect(start).toBeLessThanOrEqual(3);
    },
  );
});

test.skipIf(!hasChromium)("a page that came over plain http has the same hashes", async () => {
  const root = dirname(
    page("insecure", 'import { graphHash } from "@quad-lora/runtime"; window.graphHash = graphHash;'),
  );
  const outDir = join(folder, "insecure-site");
  await vite({ configFile: false, root, logLevel: "error", resolve: { alias: sourceAlias }, build: { outDir } });
  const server = await serveFolders({ "/": outDir });
  // By its address it would be a secure context.
  const browser = await launchChromium("--host-resolver-rules=MAP quad.example 127.0.0.1");
  try {
    const opened = await browser.newPage();
    await opened.goto(`${server.url.replace("127.0.0.1", "quad.example")}/index.html`);
    await opened.waitForFunction(() => "graphHash" in window);
    const [secure, hash] = await opened.evaluate(async () => {
      const { graphHash } = window as unknown as { graphHash: (hashes: string[]) => Promise<string> };
      return [isSecureContext, await graphHash(["ab", "cd"])] as const;
    });
    expect(secure).toBe(false);
    expect(hash).toBe(createHash("sha256").update("abcd").digest("hex"));
  } finally {
    await browser.close();
    await server.close();
  }
});
