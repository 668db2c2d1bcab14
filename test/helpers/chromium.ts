import { type Browser, chromium } from "playwright-core";
import { inject } from "vitest";

const found = inject("chromium");

/** Whether there is a Chromium: `test.skipIf(!hasChromium)`. What is missing was said before the first test. */
export const hasChromium = found !== null;

/**
 * Starts Chromium without a window and without a word to the network but what pages ask for.
 * @param more - further switches
 */
export function launchChromium(...more: string[]): Promise<Browser> {
  if (!found) throw new Error("There is no Chromium: this test should have been left out.");
  return chromium.launch({
    executablePath: found.executablePath,
    env: { ...(process.env as Record<string, string>), ...found.env },
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      ...more,
    ],
  });
}
