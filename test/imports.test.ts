import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
// Plain JavaScript without declarations, as all scripts.
const { findProblems } = await import(String(new URL("../scripts/imports/check.mjs", import.meta.url)));
const { circles, packages, rooms } = await import(String(new URL("../scripts/imports/rules.mjs", import.meta.url)));

const rules = { packages, rooms: { quad: ["files", "model", "cli"] }, circles: [], exceptions: [] as string[] };
const manifests = {
  base: {},
  onnx: { dependencies: { "@quad-lora/base": "1" } },
  runtime: { dependencies: { "@quad-lora/base": "1" }, peerDependencies: { "onnxruntime-web": "1" } },
  quad: { dependencies: { "@quad-lora/onnx": "1" } },
};
/** What quad would need to have no other problem. */
const needs = {
  "onnx/src/a.ts": 'import { InputError } from "@quad-lora/base";',
  "runtime/src/a.ts": 'import { InputError } from "@quad-lora/base";',
  "quad/src/a.ts": 'export * from "@quad-lora/onnx";',
};
const problemsOf = (sources: Record<string, string>, more = {}): string[] =>
  findProblems(new Map(Object.entries({ ...needs, ...sources })), manifests, { ...rules, ...more });

describe("the check of imports", () => {
  test("lets a room import from the rooms above it in the list, and files outside of rooms from all", () => {
    expect(
      problemsOf({
        "quad/src/cli/main.ts": 'import { open } from "../model/open.ts";',
        "quad/src/model/open.ts": 'import { join } from "node:path";\nimport "../files/atomic.ts";',
        "quad/src/index.ts": 'export { main } from "./cli/main.ts";',
      }),
    ).toEqual([]);
  });

  test.each([
    ["of a value", 'import { main } from "../cli/main.ts";'],
    ["of a type", 'import type { Main } from "../cli/main.ts";'],
    ["over several lines", 'import {\n  main,\n} from "../cli/main.ts";'],
    ["at run time", 'const { main } = await import("../cli/main.ts");'],
    ["by handing on", 'export * from "../cli/main.ts";'],
  ])("finds an import of a higher room: %s", (_, text) => {
    expect(problemsOf({ "quad/src/model/open.ts": text })).toEqual([
      "quad/src/model/open.ts imports quad/src/cli/main.ts: the room cli is higher than model",
    ]);
  });

  test("passes over what comments and strings say", () => {
    const text =
      '/** import { main } from "../cli/main.ts"; */\n// from "../cli/main.ts"\nthrow "from ../cli/main.ts";';
    expect(problemsOf({ "quad/src/model/open.ts": text })).toEqual([]);
  });

  test("finds rooms without a line, and rooms that import from outside of all", () => {
    expect(
      problemsOf({
        "quad/src/attic/a.ts": 'import "../files/a.ts";',
        "quad/src/model/open.ts": 'import "../index.ts";',
      }),
    ).toEqual([
      expect.stringContaining("the room attic is not in rules.mjs"),
      expect.stringContaining("outside of all"),
    ]);
  });

  test("finds packages that import what is not below them, what they do not declare, and Node.js where browsers run them", () => {
    expect(
      problemsOf({
        "runtime/src/files.ts": 'import "node:fs";',
        "runtime/src/graph.ts": 'import "@quad-lora/onnx";',
        "quad/src/x.ts": 'import "sharp";',
        "quad/src/y.ts": 'import "../../runtime/src/files.ts";',
      }),
    ).toEqual([
      expect.stringContaining("runs in browsers"),
      expect.stringContaining("packages/runtime is not above packages/onnx"),
      expect.stringContaining("does not declare it"),
      expect.stringContaining("a package's files import their package's files"),
    ]);
  });

  test("finds dependencies that nothing imports", () => {
    const { "quad/src/a.ts": _, ...others } = needs;
    const problems = findProblems(new Map(Object.entries(others)), manifests, rules);
    expect(problems).toEqual(["packages/quad/package.json depends on @quad-lora/onnx, which nothing there imports"]);
  });

  test("finds circles of any length, but for those that are meant", () => {
    const sources = {
      "onnx/src/one.ts": 'import type { Two } from "./two.ts";',
      "onnx/src/two.ts": 'import { three } from "./three.ts";',
      "onnx/src/three.ts": 'import { one } from "./one.ts";',
    };
    const circle = Object.keys(sources).sort();
    expect(problemsOf(sources)).toEqual([expect.stringContaining(`${circle.join(", ")} import each other`)]);
    expect(problemsOf(sources, { circles: [circle] })).toEqual([]);
  });

  test("takes exceptions, and refuses those that are no longer needed", () => {
    const exceptions = ["quad/src/model/open.ts -> quad/src/cli/main.ts"];
    const wrong = { "quad/src/model/open.ts": 'import "../cli/main.ts";' };
    expect(problemsOf(wrong, { exceptions })).toEqual([]);
    expect(problemsOf({}, { exceptions })).toEqual([expect.stringContaining("is no longer so")]);
  });
});

test("the table of docs/architecture.md has every room, in the order of the rules", () => {
  const text = readFileSync(join(root, "docs/architecture.md"), "utf8");
  const rows = text.split("\n").filter((line) => /^\| `\w/.test(line));
  const told = rows.flatMap((row) => [...row.split("|")[1].matchAll(/`([\w-]+)\/`/g)].map(([, room]) => room));
  const there = readdirSync(join(root, "packages/quad/src"), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
  expect(there.filter((room) => !told.includes(room))).toEqual([]);
  expect(told).toEqual(rooms.quad.filter((room: string) => told.includes(room)));
});

test("the circle that is meant is still where the rules say", () => {
  for (const path of circles.flat()) expect(existsSync(join(root, "packages", path)), path).toBe(true);
});
