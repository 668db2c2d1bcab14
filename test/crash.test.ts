import { cpSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { serializeSafetensors } from "@quad-lora/base";
import { build } from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { restoreFolder } from "../packages/quad/src/files/replace-folder.ts";
import { operationsOf, runUntil } from "./helpers/crash.ts";
import { pocketFolder } from "./helpers/exposed-pocket.ts";
import { temporaryFolder } from "./helpers/models.ts";
import { adapterTensors, fewLayers, loadSmallBuild, snapshot, writeSmallBuild } from "./helpers/small-build.ts";

const root = temporaryFolder();
const isFull = process.env.QUAD_FULL_TESTS === "1";
const quad = join(import.meta.dirname, "../packages/quad/bin/quad.js");
const built = (path: string) => pathToFileURL(join(import.meta.dirname, "../packages/quad/dist", path)).href;

interface Case {
  /** Folder with everything before the command; it stays as it is. */
  fixture: string;
  /** The command, run in a copy of the fixture. */
  program: (folder: string) => string[];
  /** What must be whole at any time, below the folder. */
  kept: string;
  /** What is run after it where it was done already; default: the command. */
  afterwards?: (folder: string) => string[];
  /** Which operations to be killed at; default: all. */
  choose?: (operations: readonly string[]) => number[];
}

let copies = 0;
function copyOf(fixture: string): string {
  const copy = join(root, `copy ${copies++}`);
  cpSync(fixture, copy, { recursive: true, preserveTimestamps: true });
  return copy;
}

/** Without what a killed process left unfinished. */
function withoutHidden(files: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(files).filter(([path]) => !/(^|\/)\./.test(path)));
}

/** Names at and below a folder; in keys of results there may be paths. */
const allFiles = (folder: string) =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((name) => name.replace(/-[0-9a-f]{16}/, ""))
    .sort();

/** Kills the command at its operations, one run each, and looks at what is there, before and after the command's next run. */
async function killEverywhere({ fixture, program, kept, afterwards = program, choose }: Case): Promise<void> {
  const undisturbed = copyOf(fixture);
  const old = snapshot(join(undisturbed, kept));
  const operations = operationsOf(program(undisturbed), join(root, "operations"));
  const now = snapshot(join(undisturbed, kept));
  const names = allFiles(undisturbed);
  expect(operations.length).toBeGreaterThan(5);
  const chosen = choose?.(operations) ?? operations.map((_, index) => index + 1);
  for (const operation of chosen) {
    const what = `killed at ${operation} of ${operations.length}: ${operations[operation - 1]}`;
    const folder = copyOf(fixture);
    expect(runUntil(operation, program(folder)), what).toBe(true);
    // In a copy: looking puts things right, and so has the next run to do by itself.
    const looked = copyOf(folder);
    await restoreFolder(join(looked, kept));
    await restoreFolder(join(looked, kept, "adapters"));
    const left = withoutHidden(snapshot(join(looked, kept)));
    expect([old, now], what).toContainEqual(left);
    const isDone = JSON.stringify(left) === JSON.stringify(now);
    expect(runUntil(0, (isDone ? afterwards : program)(folder)), what).toBe(false);
    expect(snapshot(join(folder, kept)), what).toEqual(now);
    expect(allFiles(folder), what).toEqual(names);
  }
}

/** Around the moment at which the new folder takes the old one's place, and once in the middle. */
function sample(operations: readonly string[]): number[] {
  const swap = operations.findIndex((text) => text.startsWith("rename") && text.includes(".replaced.")) + 1;
  return [...new Set([Math.floor(operations.length / 2), swap, swap + 1, swap + 2])];
}

/** The same, and places all over a command that runs for long. */
function widerSample(operations: readonly string[]): number[] {
  const spread = Array.from({ length: 20 }, (_, index) => 1 + Math.floor((index * operations.length) / 20));
  return [...new Set([...spread, ...sample(operations), operations.length])].sort((one, other) => one - other);
}

test("a folder that is replaced is the old or the new one, wherever the process is killed", async () => {
  const fixture = join(root, "replaced");
  mkdirSync(join(fixture, "out", "deep"), { recursive: true });
  writeFileSync(join(fixture, "out", "old"), "old");
  writeFileSync(join(fixture, "out", "deep", "old"), "old");
  const script = join(root, "replace.mjs");
  writeFileSync(
    script,
    `import { mkdir } from "node:fs/promises";
import { writeFileAtomically } from ${JSON.stringify(built("files/atomic.js"))};
import { replaceFolder } from ${JSON.stringify(built("files/replace-folder.js"))};
await replaceFolder(process.argv[2], async (folder) => {
  await writeFileAtomically(folder + "/new", "new");
  await writeFileAtomically(folder + "/deep/new", "new");
});`,
  );
  await killEverywhere({ fixture, kept: "out", program: (folder) => [script, join(folder, "out")] });
}, 120_000);

describe("a command that is killed leaves the old or the new, and its next run puts everything right", () => {
  let small: string;
  const choose = isFull ? undefined : sample;
  const timeout = isFull ? 3_600_000 : 300_000;

  beforeAll(async () => {
    small = join(root, "small");
    mkdirSync(small);
    const { stages } = await build(await loadSmallBuild(small));
    cpSync(join(stages.expose.folder, "exposed"), join(small, "exposed"), { recursive: true });
    const late = serializeSafetensors(adapterTensors("erase.safetensors", fewLayers));
    writeFileSync(join(small, "late.safetensors"), late);
  }, 300_000);

  test(
    "quad add",
    async () => {
      const program = (folder: string) => [
        quad,
        "add",
        join(folder, "bundle"),
        join(folder, "late.safetensors"),
        "-t",
        "late",
      ];
      const fixture = fixtureOf("add", ["bundle", "late.safetensors"]);
      // A second time it would be refused: the name is taken.
      const afterwards = (folder: string) => [quad, "show", join(folder, "bundle"), "--verify"];
      await killEverywhere({ fixture, kept: "bundle", program, afterwards, choose });
    },
    timeout,
  );

  test(
    "quad compile, over a bundle with an adapter that was added",
    async () => {
      const fixture = fixtureOf("compile", ["bundle", "late.safetensors", "exposed"]);
      operationsOf(
        [quad, "add", join(fixture, "bundle"), join(fixture, "late.safetensors"), "-t", "late"],
        join(root, "log"),
      );
      cpSync(join(fixture, "bundle", "profile.json"), join(fixture, "profile.json"));
      const program = (folder: string) => [
        ...[quad, "compile", join(folder, "exposed"), "--profile", join(folder, "profile.json")],
        ...["--out", join(folder, "bundle")],
      ];
      await killEverywhere({ fixture, kept: "bundle", program, choose });
    },
    timeout,
  );

  test(
    "quad expose, over another exposed folder",
    async () => {
      const program = (folder: string) => [
        ...[quad, "expose", pocketFolder, "--adapter", `flat=${join(folder, "late.safetensors")}`],
        ...["--out", join(folder, "exposed")],
      ];
      await killEverywhere({
        fixture: fixtureOf("expose", ["exposed", "late.safetensors"]),
        kept: "exposed",
        program,
        choose,
      });
    },
    timeout,
  );

  test.runIf(isFull)(
    "quad build, over the bundle of another configuration",
    async () => {
      const fixture = fixtureOf("build", ["bundle"]);
      writeSmallBuild(fixture, { policy: { narrowShare: 0 } });
      const program = (folder: string) => [quad, "build", join(folder, "quad.config.json")];
      await killEverywhere({ fixture, kept: "bundle", program, choose: widerSample });
    },
    timeout,
  );

  test.runIf(isFull)(
    "quad distill, in a bundle",
    async () => {
      const fixture = fixtureOf("distill", ["bundle", "work"]);
      const distill = {
        adapters: "all",
        pictures: 3,
        validationPictures: 1,
        steps: 4,
        batch: 2,
        learningRate: 0.3,
      } as const;
      writeSmallBuild(fixture, { distill });
      const program = (folder: string) => [
        ...[quad, "distill", join(folder, "bundle"), "--config", join(folder, "quad.config.json")],
        ...["--adapter", "sketch"],
      ];
      await killEverywhere({ fixture, kept: "bundle", program, choose: widerSample });
    },
    timeout,
  );

  function fixtureOf(name: string, entries: readonly string[]): string {
    const fixture = join(root, `fixture ${name}`);
    mkdirSync(fixture);
    for (const entry of entries) cpSync(join(small, entry), join(fixture, entry), { recursive: true });
    return fixture;
  }
});
