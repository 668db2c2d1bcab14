import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "vite";
import { serveFolders } from "../browser/server.ts";
import { launchChromium } from "./chromium.ts";
import { sourceAlias } from "./sources.ts";

/**
 * Bundles a snippet as an application would be, opens it in Chromium beside a canvas, and waits until it shows a
 * picture in colour. The
 * workspace's folder `exposed` is served as `/models/exposed`.
 * @throws Error with what went wrong in the page
 */
export async function runInChromium(folder: string, source: string): Promise<void> {
  const site = mkdtempSync(join(tmpdir(), "quad-page-"));
  writeFileSync(
    join(folder, "index.html"),
    `<!doctype html><canvas></canvas><script type="module" src="/${source}"></script>`,
  );
  await build({
    configFile: false,
    root: folder,
    logLevel: "error",
    resolve: { alias: sourceAlias, preserveSymlinks: true },
    build: { outDir: site, emptyOutDir: true, target: "es2022", minify: false },
  });
  const server = await serveFolders({ "/models/exposed/": join(folder, "exposed"), "/": site });
  const browser = await launchChromium();
  try {
    const page = await browser.newPage();
    const failure = new Promise<never>((_, reject) => page.on("pageerror", reject));
    await page.goto(`${server.url}/index.html`);
    const drawn = page.waitForFunction(
      () => {
        const canvas = document.querySelector("canvas")!;
        const pixels = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height).data;
        let colourful = 0;
        for (let i = 0; i < pixels.length; i += 4) {
          const [red, green, blue] = pixels.subarray(i, i + 3) as unknown as [number, number, number];
          if (Math.max(red, green, blue) - Math.min(red, green, blue) > 32) colourful++;
        }
        return colourful > pixels.length / 4 / 50;
      },
      undefined,
      { timeout: 110_000 },
    );
    await Promise.race([drawn, failure]);
  } finally {
    await browser.close();
    await server.close();
    rmSync(site, { recursive: true, force: true });
  }
}
