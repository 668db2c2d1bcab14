import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { TestProject } from "vitest/node";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** A Chromium to launch, and what has to be in its environment. */
export interface Chromium {
  executablePath: string;
  env: Record<string, string>;
}

declare module "vitest" {
  interface ProvidedContext {
    /** Null where there is none: then browser tests are left out. */
    chromium: Chromium | null;
  }
}

const names = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome"];
const places = [
  "/usr/bin/chromium",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
];

/** Before all tests: looks for a Chromium once, and says so where there is none. */
export default async function setup(project: TestProject): Promise<void> {
  const chromium = await findChromium();
  project.provide("chromium", chromium ?? null);
  if (chromium) return;
  const told =
    "No Chromium was found: the tests that need a browser are left out. Install Chromium or Chrome, or set CHROMIUM_PATH " +
    "to one, and run the tests again.";
  if (process.env.QUAD_REQUIRE_CHROMIUM === "1") throw new Error(told);
  console.warn(`\n${told}\n`);
}

/**
 * The Chromium that tests use: `CHROMIUM_PATH`, or an installed one, or the one in the package `@sparticuz/chromium` (Linux
 * on x64 only). `QUAD_CHROMIUM=package` or `none` passes over installed ones, to test what happens without.
 * @throws Error where `CHROMIUM_PATH` is not a file
 */
export async function findChromium(environment = process.env): Promise<Chromium | undefined> {
  const { CHROMIUM_PATH: chosen, QUAD_CHROMIUM: kind, PATH = "" } = environment;
  if (chosen) {
    if (existsSync(chosen)) return { executablePath: chosen, env: {} };
    throw new Error(`CHROMIUM_PATH is ${chosen}, which does not exist.`);
  }
  if (kind === "none") return undefined;
  const candidates = [...PATH.split(delimiter).flatMap((folder) => names.map((name) => join(folder, name))), ...places];
  const installed = kind === "package" ? undefined : candidates.find((path) => existsSync(path));
  if (installed) return { executablePath: installed, env: {} };
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  return packagedChromium().catch((error) => {
    console.warn(`The Chromium of @sparticuz/chromium does not run here: ${error.message}`);
    return undefined;
  });
}

/** Unpacks the package's Chromium, unless that has been done, and tries whether it needs the libraries that come with it. */
async function packagedChromium(): Promise<Chromium> {
  const { version } = JSON.parse(await readFile(join(root, "node_modules/@sparticuz/chromium/package.json"), "utf8"));
  const folder = join(root, "node_modules/.cache/quad", `chromium-${version}`);
  if (!existsSync(folder)) await unpack(folder);
  const executablePath = join(folder, "chromium");
  const env: Record<string, string> = existsSync("/etc/fonts/fonts.conf")
    ? {}
    : { FONTCONFIG_FILE: join(folder, "fonts.conf") };
  const starts = (more: Record<string, string>) =>
    promisify(execFile)(executablePath, ["--version"], { env: { ...process.env, ...env, ...more } });
  const libraries = { LD_LIBRARY_PATH: join(folder, "al2023/lib") };
  return starts({}).then(
    () => ({ executablePath, env }),
    async () => {
      await starts(libraries);
      return { executablePath, env: { ...env, ...libraries } };
    },
  );
}

async function unpack(folder: string): Promise<void> {
  await mkdir(dirname(folder), { recursive: true });
  const temporary = await mkdtemp(`${folder}.`);
  try {
    // The package unpacks into the system's temporary folder, and its libraries only where it takes itself to be on Lambda.
    const script = 'import("@sparticuz/chromium").then(({ default: chromium }) => chromium.executablePath())';
    await promisify(execFile)(process.execPath, ["-e", script], {
      cwd: root,
      env: { ...process.env, TMPDIR: temporary, AWS_EXECUTION_ENV: "AWS_Lambda_nodejs22.x" },
    });
    const fonts = `<fontconfig><dir>${folder}/fonts</dir><cachedir>${folder}/font-cache</cachedir></fontconfig>`;
    await writeFile(join(temporary, "fonts.conf"), `<?xml version="1.0"?>${fonts}\n`);
    await rename(temporary, folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    if (!existsSync(folder)) throw error;
  }
}
