import { execFile } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "./helpers/models.ts";
import { serveRegistry } from "./helpers/registry.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const programs = join(root, "node_modules/.bin");
const project = temporaryFolder();
const model = join(root, "models/pocket");
let tarballs: string[];
let registry: Awaited<ReturnType<typeof serveRegistry>>;

/** Runs a program of an application: nothing of the checkout is on its path or in its environment. */
async function run(program: string, parameters: string[], cwd = project): Promise<string> {
  const { NODE_ENV, VITEST, npm_config_local_prefix, ...environment } = process.env;
  const env = { ...environment, ONNXRUNTIME_NODE_INSTALL: "skip", npm_config_ignore_scripts: "false" };
  const { stdout, stderr } = await promisify(execFile)(program, parameters, { cwd, env, maxBuffer: 1 << 26 }).catch(
    (error) => {
      throw new Error(`${program} ${parameters.join(" ")}\n${error.stdout}${error.stderr}`);
    },
  );
  return stdout + stderr;
}

function put(name: string, content: string | object): string {
  const file = join(project, name);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, typeof content === "string" ? content : JSON.stringify(content));
  return file;
}

beforeAll(async () => {
  // Plain JavaScript without declarations, as all scripts.
  const { packAll } = await import(String(new URL("../scripts/pack.mjs", import.meta.url)));
  tarballs = await packAll(temporaryFolder());
  registry = await serveRegistry(tarballs);
  put("package.json", { name: "application", version: "1.0.0", private: true });
  put(".npmrc", `registry=${registry.url}\ncache=${join(project, ".npm")}\naudit=false\nfund=false\n`);
  await run("npm", ["install", "quad-lora", "@quad-lora/runtime", "@quad-lora/onnx"]);
}, 300_000);

afterAll(() => registry?.close());

describe.each(["base", "onnx", "runtime", "quad"])("the package of packages/%s", (folder) => {
  const tarball = () => tarballs.find((path) => basename(path) === nameOf(folder))!;
  const nameOf = (name: string) => (name === "quad" ? "quad-lora-0.1.0.tgz" : `quad-lora-${name}-0.1.0.tgz`);

  test("holds what runs and what a reader wants to know, and every file of it has a source", async () => {
    const files = (await run("tar", ["-tzf", tarball()])).trim().split("\n");
    const compiled = files.filter((path) => path.startsWith("package/dist/"));
    const texts = [
      "CHANGELOG.md",
      "LICENSE",
      "README.md",
      "package.json",
      ...(folder === "quad" ? ["bin/quad.js"] : []),
    ];
    expect(files.filter((path) => !compiled.includes(path)).sort()).toEqual(
      texts.map((name) => `package/${name}`).sort(),
    );
    const sources = readdirSync(join(root, "packages", folder, "src"), { recursive: true, encoding: "utf8" })
      .filter((path) => path.endsWith(".ts") && !/(\.test|\/testing)\.ts$/.test(path))
      .flatMap((path) => [path.replace(/\.ts$/, ".js"), path.replace(/\.ts$/, ".d.ts")]);
    expect(compiled.map((path) => path.slice("package/dist/".length)).sort()).toEqual(sources.sort());
  });

  test("has the checkout's licence", () => {
    expect(readFileSync(join(root, "packages", folder, "LICENSE"), "utf8")).toBe(
      readFileSync(join(root, "LICENSE"), "utf8"),
    );
  });

  test("is as publint and Are the types wrong want it", async () => {
    expect(await run(join(programs, "publint"), ["run", tarball(), "--strict"])).toContain("All good!");
    const report = await run(join(programs, "attw"), [tarball(), "--profile", "esm-only", "--format", "json"]);
    const problems: { resolutionKind: string }[] = Object.values(JSON.parse(report).problems ?? {}).flat() as never;
    // The tool takes require of an ES module for an error; that it works is tested below. node10 is older than `exports`.
    expect(problems.filter(({ resolutionKind }) => !["node10", "node16-cjs"].includes(resolutionKind))).toEqual([]);
  });
});

describe("an application that installs the packages", () => {
  test("has one copy of ONNX Runtime, and of each package", async () => {
    const tree = JSON.parse(await run("npm", ["ls", "--all", "--json"]));
    const copies = readdirSync(join(project, "node_modules"), { recursive: true, encoding: "utf8" }).filter((path) =>
      /(^|node_modules\/)(onnxruntime-(common|node)|zod|quad-lora|@quad-lora\/\w+)$/.test(path),
    );
    expect(copies.map((path) => path.replace(/.*node_modules\//, "")).sort()).toEqual([
      "@quad-lora/base",
      "@quad-lora/onnx",
      "@quad-lora/runtime",
      "onnxruntime-common",
      "onnxruntime-node",
      "quad-lora",
      "zod",
    ]);
    expect(tree.problems ?? []).toEqual([]);
  });

  test("draws from an ES module, and catches what it imports", async () => {
    const out = join(project, "module.png");
    put(
      "draw.mjs",
      `import { InputError, openFolder, writeImage } from "quad-lora";
       import { InputError as FromRuntime } from "@quad-lora/runtime";
       import { InputError as FromOnnx } from "@quad-lora/onnx";
       const pipeline = await openFolder(${JSON.stringify(model)});
       await writeImage(${JSON.stringify(out)}, await pipeline.generate({ prompt: "crab animal marine", steps: 4, seed: 7 }));
       await pipeline.dispose();
       const error = await openFolder("nowhere").catch((error) => error);
       for (const kind of [InputError, FromRuntime, FromOnnx]) if (!(error instanceof kind)) throw error;`,
    );
    await run(process.execPath, ["draw.mjs"]);
    await expectPicture(out);
  });

  test("draws from CommonJS, the same picture", async () => {
    const out = join(project, "common.png");
    put(
      "draw.cjs",
      `const { openFolder, writeImage } = require("quad-lora");
       for (const name of ["base", "onnx", "runtime"]) require("@quad-lora/" + name);
       (async () => {
         const pipeline = await openFolder(${JSON.stringify(model)});
         await writeImage(${JSON.stringify(out)}, await pipeline.generate({ prompt: "crab animal marine", steps: 4, seed: 7 }));
         await pipeline[Symbol.asyncDispose]();
       })();`,
    );
    await run(process.execPath, ["draw.cjs"]);
    expect(readFileSync(out)).toEqual(readFileSync(join(project, "module.png")));
  });

  const source = `
    import { type GenerateOptions, InputError, openFolder, type Pipeline, type Selection, writeImage } from "quad-lora";
    import { fetchFiles, openPipeline } from "@quad-lora/runtime";
    import { loadModel, type Node } from "@quad-lora/onnx";
    import * as ort from "onnxruntime-node";
    export async function draw(folder: string, use: Selection, options: GenerateOptions): Promise<number> {
      await using pipeline: Pipeline = await openFolder(folder, { threads: 2 });
      await pipeline.use(use);
      const { data, width } = await pipeline.generate(options);
      await writeImage("picture.png", { data, width, height: data.length / width / 3 });
      return data.length;
    }
    export const open = (url: string) => openPipeline({ ort, files: fetchFiles(url) });
    export const nodes: Iterable<Node> = loadModel("model.onnx").graph.nodes;
    export const fix = (error: unknown) => (error instanceof InputError ? error.message : undefined);
    // @ts-expect-error steps is a number
    void draw("folder", null, { prompt: "crab", steps: "4" });`;

  test.each([
    ["nodenext", "NodeNext", "module.mts"],
    ["nodenext, from CommonJS", "NodeNext", "common.cts"],
    ["bundler", "ESNext", "bundled.ts"],
  ])("type checks strictly: %s", async (name, module, file) => {
    put(join("types", file), source);
    const compilerOptions = {
      module,
      moduleResolution: name === "bundler" ? "Bundler" : "NodeNext",
      target: "ES2022",
      lib: ["ES2022", "DOM", "ESNext.Disposable"],
      strict: true,
      exactOptionalPropertyTypes: true,
      noEmit: true,
      types: [],
    };
    const config = put(`types/${file}.json`, { compilerOptions, files: [file] });
    await run(join(programs, "tsc"), ["-p", config]);
  });

  test("runs the command", async () => {
    expect(await run("npx", ["--no-install", "quad", "--version"])).toContain("0.1.0");
    const adapter = join(model, "adapters/flat.safetensors");
    await run("npx", ["--no-install", "quad", "expose", model, "--adapter", `flat=${adapter}`, "--out", "exposed"]);
    const draw = ["run", "exposed", "--task", "flat", "--prompt", "crab animal marine", "--steps", "4"];
    await run("npx", ["--no-install", "quad", ...draw, "--out", "flat.png"]);
    await expectPicture(join(project, "flat.png"));
  });
});

async function expectPicture(file: string): Promise<void> {
  const { channels } = await sharp(file).stats();
  expect(Math.max(...channels.map(({ stdev }) => stdev))).toBeGreaterThan(5);
}
