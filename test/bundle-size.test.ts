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

const packages = fileURLToPath(new URL("../packages", import.meta.url));
const alias = {
  "@quad-lora/base": join(packages, "base/src/index.ts"),
  "@quad-lora/runtime": join(packages, "runtime/src/index.ts"),
};
const folder = temporaryFolder();

/** Sizes after gzip, kB: of the code that a page starts with, and of all that it may load later. */
interface Size {
  entry: number;
  later: Record<string, number>;
}
type Bundler = (name: string, source: string) => Promise<Size>;

function page(name: string, source: string): string {
  const file = join(folder, name, "main.js");
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, source);
  writeFileSync(join(folder, name, "index.html"), '<!doctype html><script type="module" src="/main.js"></script>');
  return file;
}

const kilobytes = (code: string) => gzipSync(code, { level: 9 }).length / 1000;

const withEsbuild: Bundler = async (name, source) => {
  const { outputFiles } = await esbuild({
    entryPoints: [page(name, source)],
    ...{ bundle: true, minify: true, splitting: true, format: "esm", write: false, outdir: folder },
    alias,
    nodePaths: [join(packages, "../node_modules")],
  });
  const chunks = outputFiles.map(({ path, text }) => [path.split(/[\\/]/).at(-1)!, text] as const);
  const later = chunks.filter(([chunk]) => chunk !== "main.js").map(([chunk, text]) => [chunk, kilobytes(text)]);
  return { entry: kilobytes(chunks.find(([chunk]) => chunk === "main.js")![1]), later: Object.fromEntries(later) };
};

const withVite: Bundler = async (name, source) => {
  const root = dirname(page(name, source));
  const output = await vite({
    configFile: false,
    root,
    logLevel: "error",
    resolve: { alias },
    build: { write: false },
  });
  const chunks = [output].flat().flatMap((result) => ("output" in result ? result.output : []));
  const code = chunks.filter((chunk) => chunk.type === "chunk");
  const later = code.filter(({ isEntry }) => !isEntry).map((chunk) => [chunk.name, kilobytes(chunk.code)]);
  return { entry: kilobytes(code.find(({ isEntry }) => isEntry)!.code), later: Object.fromEntries(later) };
};

describe.each([
  ["esbuild", withEsbuild],
  ["Vite", withVite],
])("%s", (bundler, build) => {
  test("a page that draws starts with at most 45 kB, and loads at most 12 kB of tokenizers when it opens a model", async () => {
    const source =
      'import { fetchFiles, openPipeline } from "@quad-lora/runtime"; window.use = [fetchFiles, openPipeline];';
    const { entry, later } = await build(`draw-${bundler}`, source);
    expect(entry).toBeGreaterThan(20);
    expect(entry).toBeLessThanOrEqual(45);
    // The tokenizers, and SHA-256 in JavaScript where a page has no Web Cryptography.
    expect(
      Object.keys(later)
        .map((name) => name.replace(/-.*/, ""))
        .sort(),
    ).toEqual(["sha2", "tokenizers"]);
    expect(Object.entries(later).find(([name]) => name.startsWith("tokenizers"))![1]).toBeLessThanOrEqual(12);
  });

  test.each(["InputError", "graphHash", "readOnnxAdapter", "resizeNearest", "rgbaFromRgb", "SeededRandom"])(
    "importing %s alone takes at most 3 kB",
    async (name) => {
      const source = `import { ${name} } from "@quad-lora/runtime"; window.use = ${name};`;
      const { entry } = await build(`${name}-${bundler}`, source);
      expect(entry).toBeLessThanOrEqual(3);
    },
  );
});

test.skipIf(!hasChromium)("a page that came over plain http has the same hashes", async () => {
  const root = dirname(
    page("insecure", 'import { graphHash } from "@quad-lora/runtime"; window.graphHash = graphHash;'),
  );
  const outDir = join(folder, "insecure-site");
  await vite({ configFile: false, root, logLevel: "error", resolve: { alias }, build: { outDir } });
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
