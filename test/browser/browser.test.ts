import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { openPipeline, type RgbImage } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import type { Browser, Page } from "playwright-core";
import { build as buildBundle, folderFiles, readImage, readMask } from "quad-lora";
import { build } from "vite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hasChromium, launchChromium } from "../helpers/chromium.ts";
import { exposedPocket } from "../helpers/exposed-pocket.ts";
import { psnr } from "../helpers/pictures.ts";
import { pocketVariant } from "../helpers/pocket-variants.ts";
import { loadSmallBuild, scratchFolder } from "../helpers/small-build.ts";
import { sourceAlias } from "../helpers/sources.ts";
import type { PageRun } from "./page.ts";
import { listFiles, serveFolders } from "./server.ts";

const here = dirname(fileURLToPath(import.meta.url));
const images = join(here, "../reference/pocket/images");
const ortFolder = dirname(createRequire(import.meta.url).resolve("onnxruntime-web/ort-wasm-simd-threaded.wasm"));

let bundle: string;
let browser: Browser;

beforeAll(async () => {
  if (!hasChromium) return;
  bundle = await mkdtemp(join(tmpdir(), "quad-browser-"));
  await build({
    configFile: false,
    root: here,
    logLevel: "warn",
    resolve: {
      alias: sourceAlias,
      // The page says itself where the WebAssembly files are, so that none is bundled.
      conditions: ["onnxruntime-web-use-extern-wasm"],
    },
    build: {
      outDir: bundle,
      emptyOutDir: true,
      lib: { entry: join(here, "page.ts"), formats: ["es"], fileName: "page" },
    },
  });
  await writeFile(join(bundle, "index.html"), '<!doctype html><script type="module" src="page.js"></script>');
  browser = await launchChromium();
});

afterAll(async () => {
  await browser?.close();
  if (bundle) await rm(bundle, { recursive: true, force: true });
});

async function inBrowser(folder: string, runs: PageRun[]) {
  const server = await serveFolders({ "/model/": folder, "/ort/": ortFolder, "/": bundle });
  let page: Page | undefined;
  try {
    page = await browser.newPage();
    const problems: string[] = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`${server.url}/index.html`);
    await page
      .waitForFunction(() => "runPage" in globalThis, undefined, { timeout: 20_000 })
      .catch((error) => {
        throw new Error(`the page did not start: ${problems.join("; ") || error}`);
      });
    const index = await listFiles(folder);
    return await page.evaluate(
      ([modelUrl, files, ortUrl, wanted]) => globalThis.runPage(modelUrl, files, ortUrl, wanted),
      [`${server.url}/model`, index, `${server.url}/ort/`, runs] as const as [string, string[], string, PageRun[]],
    );
  } finally {
    await page?.close();
    await server.close();
  }
}

async function inNode(folder: string, runs: PageRun[]): Promise<Uint8Array[]> {
  const pipeline = await openPipeline({ ort, files: folderFiles(folder) });
  const bytes = (picture: PageRun["image"]) => picture && { ...picture, data: Uint8Array.from(picture.data) };
  const pictures: Uint8Array[] = [];
  for (const { selection, options, image, mask } of runs) {
    await pipeline.use(selection);
    pictures.push((await pipeline.generate({ ...options, image: bytes(image), mask: bytes(mask) })).data);
  }
  await pipeline.dispose();
  return pictures;
}

const plain = (picture: RgbImage) => ({ ...picture, data: [...picture.data] });

async function compare(folder: string, runs: PageRun[], least = 45) {
  const [page, node] = [await inBrowser(folder, runs), await inNode(folder, runs)];
  expect(page.pictures.length).toBe(runs.length);
  runs.forEach((_, index) => {
    expect(psnr(page.pictures[index], node[index])).toBeGreaterThanOrEqual(least);
  });
  // Different requests must not give the same picture: nothing above would notice.
  for (let i = 1; i < runs.length; i++) expect(psnr(node[i], node[i - 1])).toBeLessThan(30);
  expect(page.sessionsWhileRunning).toBe(0);
  return page;
}

describe.skipIf(!hasChromium)("Chromium makes the pictures that Node makes", { timeout: 300_000 }, () => {
  test("base model with external data: text-to-image and inpainting", async () => {
    const page = await compare(await pocketVariant("external data"), [
      { selection: "base", options: { prompt: "crab animal marine", seed: 3, steps: 8, guidance: 3 } },
      { selection: null, options: { prompt: "tulip plant flower", seed: 4, steps: 4, guidance: 1 } },
      {
        selection: "base",
        options: { prompt: "dog face animal mammal", seed: 5, steps: 8, guidance: 3 },
        image: plain(await readImage(join(images, "source-dog-face.png"))),
        mask: plain(await readMask(join(images, "mask.png"))),
      },
    ]);
    expect(page.tasks).toEqual(["base"]);
  });

  test.each(["dynamic", "fixed"] as const)("exposed model, %s rank: switching tasks and blending", async (rank) => {
    const folder = await exposedPocket(rank);
    const prompt = "slice of pizza food prepared";
    const page = await compare(folder, [
      { selection: "flat", options: { prompt, seed: 6, steps: 8, guidance: 3 } },
      {
        selection: "sketch",
        options: { prompt, seed: 7, steps: 8, guidance: 2 },
        image: plain(await readImage(join(images, "sketch-input-pizza.png"))),
      },
      { selection: "base", options: { prompt, seed: 8, steps: 8, guidance: 3 } },
      { selection: { flat: 0.7, sketch: 0.5 }, options: { prompt, seed: 9, steps: 4, guidance: 3 } },
    ]);
    expect(page.tasks).toEqual(expect.arrayContaining(["base", "flat", "sketch", "erase"]));
  });

  // Building the bundle takes as long as all the rest.
  test.skipIf(process.env.QUAD_FULL_TESTS !== "1")(
    "bundle: integer adapters, and a changed file is refused",
    async () => {
      const { out, stages } = await buildBundle(await loadSmallBuild(await scratchFolder()));
      const prompt = "crab animal marine";
      const runs: PageRun[] = [
        { selection: "base", options: { prompt, seed: 8, steps: 4, guidance: 3 } },
        { selection: "flat", options: { prompt, seed: 6, steps: 4, guidance: 3 } },
        { selection: { flat: 0.7, sketch: 0.5 }, options: { prompt, seed: 9, steps: 4, guidance: 3 } },
      ];
      // Engines differ in the last bits of float32; at 8 bits some of these become whole steps.
      const page = await compare(out, runs, 30);
      const [exact, node] = [await inNode(join(stages.expose!.folder, "exposed"), runs), await inNode(out, runs)];
      runs.forEach((_, index) => {
        const [here, there] = [page.pictures[index], node[index]].map((picture) => psnr(picture, exact[index]));
        expect(here).toBeGreaterThan(there! - 2);
      });
      expect(page.tasks).toEqual(["base", "flat", "sketch"]);
      const path = join(out, "unet/model.onnx");
      const bytes = await readFile(path);
      bytes[bytes.length >> 1] ^= 1;
      await writeFile(path, bytes);
      await expect(inBrowser(out, [])).rejects.toThrow(/model.onnx: is not the file that the manifest describes/);
    },
  );
});
