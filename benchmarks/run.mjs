// npm run bench [-- NAME ...] [--compare OLD.json] [--tolerance 0.15] [--readme] [--only-tables]
// --readme writes the README's tables from what this and earlier runs measured; --only-tables measures nothing.
import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { writeFileAtomically } from "quad-lora";
import { formatDuration, formatTable } from "../packages/quad/dist/cli/terminal.js";
import { compareResults } from "./compare.mjs";
import { inOwnProcess, machine } from "./harness.mjs";
import { fillTables, readmeTables, readScale } from "./tables.mjs";

const folder = fileURLToPath(new URL(".", import.meta.url));
const suffix = ".bench.mjs";
const { values: options, positionals: wanted } = parse();
const tolerance = Number(options.tolerance);
if (!(tolerance >= 0)) fail(`--tolerance: expected a share such as 0.15, got ${options.tolerance}`);
const before = options.compare ? await readResults(options.compare) : undefined;

const names = (await readdir(folder))
  .filter((file) => file.endsWith(suffix))
  .map((file) => basename(file, suffix))
  .sort();
for (const name of wanted) if (!names.includes(name)) fail(`no benchmark ${name}: there are ${names.join(", ")}`);

const facts = machine();
console.log(
  `${facts.cpu}, ${facts.cores} cores, ${facts.memoryGB} GB, node ${facts.node}, ONNX Runtime ${facts.onnxruntime}`,
);
const output = join(folder, "results/latest.json");
// A run of some benchmarks leaves the others' results, if they are of the same machine.
const known = existsSync(output) ? await readResults(output, "benchmarks/results/latest.json") : null;
const all = known?.machine.cpu === facts.cpu ? { ...known.results } : {};
/** @type {Record<string, import("./harness.mjs").Result>} */
const results = {};
for (const name of wanted.length > 0 ? wanted : options["only-tables"] ? [] : names) {
  const started = performance.now();
  const result = await inOwnProcess(join(folder, `${name}${suffix}`), "default");
  results[name] = { measured: new Date().toISOString(), ...result };
  print(name, results[name], performance.now() - started);
  // At once: the next one may take an hour, and fail.
  all[name] = results[name];
  const content = { format: "quad-benchmarks", version: 1, machine: facts, results: all };
  await writeFileAtomically(output, `${JSON.stringify(content, null, 2)}\n`);
}
if (Object.keys(results).length > 0) console.log("\nWrote benchmarks/results/latest.json");
if (options.readme) {
  const names = await fillTables(join(folder, "../README.md"), readmeTables(all, await readScale(folder)));
  console.log(`Wrote README.md: ${names.join(", ") || "no table has its results"}`);
}

if (before) {
  if (before.machine.cpu !== facts.cpu)
    console.log(`\nnote: ${options.compare} was measured on another machine (${before.machine.cpu})`);
  const rows = compareResults(before.results, results, tolerance);
  console.log(
    `\n${formatTable([
      ["benchmark", "figure", "unit", "old", "new", "new/old", ""],
      ...rows.map((row) => [
        row.benchmark,
        row.name,
        row.unit,
        round(row.old),
        round(row.new),
        row.ratio.toFixed(2),
        row.isWorse ? "worse" : "",
      ]),
    ])}`,
  );
  const worse = rows.filter(({ isWorse }) => isWorse).length;
  console.log(`\n${rows.length} figures compared, ${worse} worse than the tolerance`);
  process.exitCode = worse > 0 ? 1 : 0;
}

function print(name, { title, figures, notes = [] }, milliseconds) {
  const byName = new Map(figures.map((figure) => [figure.name, figure]));
  const rows = figures.map(({ name: label, value, unit, runs, baseline }) => {
    const base = baseline === undefined ? undefined : byName.get(baseline)?.value;
    return [label, round(value), unit, runs ?? "", base ? `${(value / base).toPrecision(3)} x ${baseline}` : ""];
  });
  console.log(`\n${name}: ${title} (${formatDuration(milliseconds)})\n`);
  console.log(formatTable([["figure", "median", "unit", "runs", "ratio"], ...rows]));
  for (const note of notes) console.log(`  ${note}`);
}

function round(value) {
  return value === 0 || Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3));
}

function parse() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        compare: { type: "string" },
        tolerance: { type: "string", default: "0.15" },
        readme: { type: "boolean", default: false },
        "only-tables": { type: "boolean", default: false },
      },
    });
  } catch (error) {
    return fail(error.message);
  }
}

async function readResults(path, shown = `--compare ${path}`) {
  try {
    const file = JSON.parse(await readFile(path, "utf8"));
    if (file.format === "quad-benchmarks" && file.version === 1) return file;
  } catch (error) {
    fail(`${shown}: ${error.message}`);
  }
  return fail(`${shown}: not written by npm run bench`);
}

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(2);
}
