import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { findChromium } from "./helpers/find-chromium.ts";

const packaged = process.platform === "linux" && process.arch === "x64";

test.runIf(packaged)("without a Chromium on this machine, one that an npm package carries starts", async () => {
  const chromium = await findChromium({ QUAD_CHROMIUM: "package" });
  expect(chromium).toBeDefined();
  const env = { ...process.env, ...chromium!.env };
  const { stdout } = await promisify(execFile)(chromium!.executablePath, ["--version"], { env });
  expect(stdout).toMatch(/^Chromium \d+/);
});

test("CHROMIUM_PATH comes before all others, and has to be there", async () => {
  const found = await findChromium({ CHROMIUM_PATH: process.execPath });
  expect(found).toEqual({ executablePath: process.execPath, env: {} });
  await expect(findChromium({ CHROMIUM_PATH: "/nowhere/chromium" })).rejects.toThrow(
    "CHROMIUM_PATH is /nowhere/chromium",
  );
});
