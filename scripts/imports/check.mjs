// Holds the imports of all packages to rules.mjs; part of npm run lint.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import * as rules from "./rules.mjs";

/**
 * @param {Map<string, string>} sources text by path below `packages/`: `quad/src/cli/main.ts`, without tests
 * @param {Record<string, object>} manifests content of `package.json` by the package's folder
 * @param {typeof import("./rules.mjs")} rules
 * @returns {string[]} what breaks the rules, one sentence each
 */
export function findProblems(sources, manifests, { packages, rooms, circles, exceptions }) {
  const graph = new Map([...sources].map(([path, text]) => [path, importsOf(text)]));
  const known = new Set(exceptions);
  const problems = [];
  const report = (key, sentence) => {
    if (!known.delete(key)) problems.push(sentence);
  };

  for (const [path, targets] of graph) {
    const folder = path.split("/")[0];
    for (const target of targets) {
      const problem = target.startsWith(".")
        ? relativeProblem(path, resolve(path, target), rooms[folder])
        : packageProblem(folder, target, manifests[folder], packages);
      const to = target.startsWith(".") ? resolve(path, target) : target;
      if (problem) report(`${path} -> ${to}`, `${path} imports ${to}: ${problem}`);
    }
  }
  const allowed = new Set(circles.map((files) => [...files].sort().join(", ")));
  for (const files of findCircles(graph)) {
    const key = files.sort().join(", ");
    if (!allowed.has(key)) report(key, `${key} import each other: move what they share into a file of its own`);
  }
  for (const [folder, { dependencies = {} }] of Object.entries(manifests)) {
    const used = new Set(
      [...graph].filter(([path]) => path.startsWith(`${folder}/`)).flatMap(([, all]) => all.map(packageOf)),
    );
    for (const name of Object.keys(dependencies)) {
      if (!used.has(name))
        problems.push(`packages/${folder}/package.json depends on ${name}, which nothing there imports`);
    }
  }
  for (const key of known) problems.push(`"${key}" is no longer so: delete it from the exceptions in rules.mjs`);
  return problems;
}

/** Specifiers of all imports and re-exports: of values and of types, static and dynamic. */
export function importsOf(text) {
  const code = text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  return [...new Set([...code.matchAll(/\b(?:from|import)\s*\(?\s*"([\w@./:-]+)"/g)].map(([, target]) => target))];
}

const resolve = (path, target) => posix.join(posix.dirname(path), target);
const packageOf = (target) => target.match(/^(@[^/]+\/)?[^/]+/)[0];

function relativeProblem(from, to, order = []) {
  const [fromFolder, , fromRoom, ...fromRest] = from.split("/");
  const [toFolder, source, toRoom, ...toRest] = to.split("/");
  if (toFolder !== fromFolder || source !== "src") return "a package's files import their package's files";
  if (order.length === 0 || fromRest.length === 0) return undefined;
  if (toRest.length === 0) return "a room does not import from outside of all rooms";
  const [here, there] = [order.indexOf(fromRoom), order.indexOf(toRoom)];
  for (const [index, room] of [
    [here, fromRoom],
    [there, toRoom],
  ])
    if (index < 0) return `the room ${room} is not in rules.mjs: give it a line, after all rooms that it imports from`;
  return there > here ? `the room ${toRoom} is higher than ${fromRoom}` : undefined;
}

function packageProblem(folder, target, manifest, packages) {
  if (target.startsWith("node:")) return packages[folder].node ? undefined : "this package runs in browsers, too";
  const name = packageOf(target);
  const own = Object.entries(packages).find(([, other]) => other.name === name)?.[0];
  if (own && !packages[folder].imports.includes(own)) return `packages/${folder} is not above packages/${own}`;
  const declared = { ...manifest.dependencies, ...manifest.peerDependencies };
  return name in declared ? undefined : `packages/${folder}/package.json does not declare it`;
}

/** Groups of files that import each other, by Tarjan's algorithm for strongly connected components. */
function findCircles(graph) {
  const state = new Map();
  const stack = [];
  const found = [];
  const visit = (path) => {
    const own = { index: state.size, low: state.size, open: true };
    state.set(path, own);
    stack.push(path);
    for (const target of graph.get(path)) {
      const to = target.startsWith(".") && resolve(path, target);
      if (!to || !graph.has(to)) continue;
      if (!state.has(to)) own.low = Math.min(own.low, visit(to).low);
      else if (state.get(to).open) own.low = Math.min(own.low, state.get(to).index);
    }
    if (own.low === own.index) {
      const group = stack.splice(stack.indexOf(path));
      for (const member of group) state.get(member).open = false;
      if (group.length > 1) found.push(group);
    }
    return own;
  };
  for (const path of graph.keys()) if (!state.has(path)) visit(path);
  return found;
}

function readPackages(root) {
  const sources = new Map();
  const manifests = {};
  for (const folder of Object.keys(rules.packages)) {
    manifests[folder] = JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8"));
    for (const entry of readdirSync(join(root, folder, "src"), { recursive: true })) {
      const path = `${folder}/src/${entry.replaceAll("\\", "/")}`;
      if (path.endsWith(".ts") && !/(\.test|\/testing)\.ts$/.test(path))
        sources.set(path, readFileSync(join(root, path), "utf8"));
    }
  }
  return { sources, manifests };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const { sources, manifests } = readPackages(join(dirname(fileURLToPath(import.meta.url)), "../../packages"));
  const problems = findProblems(sources, manifests, rules);
  for (const problem of problems) console.error(problem);
  console.log(
    `Imports of ${sources.size} files: ${problems.length === 0 ? "as they should be" : `${problems.length} wrong`}.`,
  );
  if (problems.length > 0) process.exitCode = 1;
}
