// The tables of README.md and docs/scale.md, from measured results. A table stands between <!-- table: NAME --> and
// <!-- /table -->, and is replaced as a whole; one whose results are missing stays as it is.
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomically } from "quad-lora";

/**
 * Writes tables into a Markdown file. Returns the names of those that it wrote.
 * @param {string} path
 * @param {Record<string, string | null>} tables Markdown by name; null where results are missing
 */
export async function fillTables(path, tables) {
  const written = [];
  const text = (await readFile(path, "utf8")).replaceAll(
    /(<!-- table: ([\w-]+) -->\n)[\s\S]*?(<!-- \/table -->)/g,
    (whole, start, name, end) => {
      const table = tables[name];
      if (!table) return whole;
      written.push(name);
      return `${start}${table}\n${end}`;
    },
  );
  await writeFileAtomically(path, text);
  return written;
}

/** What `benchmarks/scale/run.mjs` measured last; null before it ran. */
export async function readScale(folder) {
  const path = join(folder, "results/scale.json");
  return existsSync(path) ? JSON.parse(await readFile(path, "utf8")) : null;
}

/** A Markdown table. */
export function markdown([header, ...rows]) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return [line(header), line(header.map(() => "---")), ...rows.map(line)].join("\n");
}

/** Three digits. */
export function round(value) {
  if (value === null || value === undefined) return "";
  return String(Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
}

/**
 * The README's tables by name.
 * @param {Record<string, import("./harness.mjs").Result>} results of benchmarks, by name
 */
export function readmeTables(results, scale) {
  const captioned = (name, table, caption) =>
    results[name] ? `\n${caption(results[name])}\n\n${table(results[name], scale)}\n` : null;
  return {
    shares: captioned("quality", sharesTable, ({ ablation: { pictures } }) =>
      [
        "**One profile for all adapters.** Pictures of the pocket model's tasks against full precision with the same noise,",
        `${pictures} held-out pictures a task, without training: PSNR dB / SSIM, mean over the tasks, and the lowest task's PSNR. Every`,
        "activation is quantized. The paper's model collapses where all layers take 8-bit inputs; what causes that, and how it is",
        "avoided: [docs/method.md](docs/method.md#bits-where-they-matter).",
      ].join("\n"),
    ),
    distillation: captioned("distillation", distillationTable, ({ pictures }) =>
      [
        "**After distillation**, pocket model, PSNR dB / SSIM against full precision with the same noise, all activations quantized,",
        `${pictures} pictures a task of prompts, pictures and seeds that neither calibration nor training has seen. The paper reports 33.0 / 0.94`,
        "for object removal with W8A16, and for its ablation 32.7 / 0.98 with W8A16, 5.4 / 0.23 with all layers W8A8.",
      ].join("\n"),
    ),
    storage: captioned(
      "shipping",
      storageTable,
      () => "**Storage.** Full-precision models with one adapter merged into each, the same at 8 bits, and one bundle.",
    ),
    shipping: captioned("shipping", shippingTable, () => "**Every way to ship the pocket model's tasks.**"),
    switching: captioned(
      "switching",
      switchingTable,
      () => "**Adapters as inputs in full precision**, pocket model, two threads.",
    ),
    large: captioned(
      "quantized-step",
      largeTable,
      () => "**The UNet of Stable Diffusion 1.5** with generated weights, two threads.",
    ),
    training: captioned("training-step", trainingTable, () => "**Training**, two threads."),
  };
}

/** PSNR and SSIM of the paper's ablation (object removal, distilled), by share of W8A8 layers in percent. */
const paperShares = { 0: "32.7 / 0.981", 40: "32.7 / 0.981", 80: "31.4 / 0.978", 100: "5.4 / 0.23" };

function sharesTable({ ablation }) {
  const row = (name) => ablation.rows.find((candidate) => candidate.name === name);
  const cell = (name) => {
    const found = row(name);
    if (!found) return "";
    const tasks = Object.values(found.tasks);
    const mean = (metric) => tasks.reduce((sum, figures) => sum + figures[metric], 0) / tasks.length;
    const lowest = Math.min(...tasks.map(({ psnr }) => psnr));
    return `${mean("psnr").toFixed(1)} / ${mean("ssim").toFixed(3)} (${lowest.toFixed(1)})`;
  };
  const width = (share) => (share === 0 ? "W8A16" : `W8A8 ${share} %`);
  const rows = Object.entries(paperShares).map(([share, paper]) => [
    `${share} %`,
    ...["own", "anchor", "unified"].map((profile) => cell(`${profile}, ${width(Number(share))}`)),
    paper,
  ]);
  const untrained = (suffix, label) => ["anchor", "unified"].map((profile) => cell(`${profile}, ${label}${suffix}`));
  return markdown([
    ["layers with 8-bit inputs", "own profile per task", "anchor's profile", "merged profile", "paper, trained"],
    ...rows,
    ["0 %, factors not aligned", "", ...untrained(", not aligned", "W8A16"), ""],
    ["100 %, factors not aligned", "", ...untrained(", not aligned", "W8A8 100 %"), ""],
  ]);
}

function distillationTable({ tables }) {
  const cell = (psnr, ssim) => `${psnr.toFixed(1)} / ${ssim.toFixed(3)}`;
  const widths = Object.entries(tables);
  const [, first] = widths[0];
  return markdown([
    ["task", ...widths.flatMap(([width]) => [`${width}: own profile`, "shared", "shared, distilled"])],
    ...first.map(({ task }, index) => [
      widths.every(([, table]) => table[index].isAnchor) ? `${task} (anchor)` : task,
      ...widths.flatMap(([, table]) =>
        ["own", "untrained", "candidate"].map((name) => cell(table[index].psnr[name], table[index].ssim[name])),
      ),
    ]),
  ]);
}

const taskCounts = [1, 2, 5, 10];
/** Of SD 1.5: ten merged models of 1.4 GB + 120 MB each, and one model with ten adapters. */
const paperStorage = "15 GB, 2.6 GB";

function storageTable({ figures }, scale) {
  const value = (name) => figures.find((figure) => figure.name === name)?.value;
  const cells = (full, quantized, bundle) => [
    ...[full, quantized, bundle].map(round),
    `${round(quantized / bundle)} x`,
  ];
  const pocket = (count) => {
    const label = `storage, ${count} task${count === 1 ? "" : "s"}`;
    return cells(...["merged fp32", "merged quantized", "bundle"].map((way) => value(`${label}, ${way}`)));
  };
  const large = (count) => {
    const { mergedFullPrecision, mergedQuantized, bundle } = scale.storage.find(({ tasks }) => tasks === count);
    return cells(...[mergedFullPrecision, mergedQuantized, bundle].map((bytes) => bytes / 1e9));
  };
  const header = (model, unit) => [`${model}: merged fp32, ${unit}`, "merged 8-bit", "bundle", "smaller"];
  return markdown([
    ["tasks", ...header("pocket", "MB"), ...(scale ? header("SD 1.5", "GB") : []), "paper: merged, shared"],
    ...taskCounts.map((count) => [
      ...[count, ...pocket(count), ...(scale ? large(count) : [])],
      count === 10 ? paperStorage : "",
    ]),
  ]);
}

const ways = ["merged fp32", "merged quantized", "exposed fp32", "bundle"];

/** The pocket model, every way to ship its tasks. */
function shippingTable({ figures }) {
  const values = new Map(figures.map(({ name, value }) => [name, value]));
  const inTurn = [...values.keys()].find((name) => name.includes("tasks in turn")).replace(/, [^,]+$/, "");
  const labels = {
    step: ["denoising step, ms", ""],
    "picture of 8 steps": ["picture of 8 steps, ms", ""],
    open: ["open the model, ms", ""],
    "change the task": ["change the task, ms", "saves about 1,500"],
    "peak memory, one task": ["peak memory, one task, MB", ""],
    [inTurn]: [`${inTurn}, MB`, ""],
  };
  const rows = Object.entries(labels).map(([label, [shown, paper]]) => {
    const base = values.get(`${label}, ${ways[0]}`);
    return [shown, ...ways.map((way) => withRatio(values.get(`${label}, ${way}`), base, way === ways[0])), paper];
  });
  return markdown([["pocket", ...ways, "paper, on a phone"], ...rows]);
}

/** The UNet of Stable Diffusion 1.5 with generated weights, by the graph's precision. */
function largeTable({ figures }) {
  const values = new Map(figures.map(({ name, value }) => [name, value]));
  const variants = ["float32, merged", "float32", "W8A16", "W8A8"];
  const row = (kind, unit) => [
    `${kind}, ${unit}`,
    ...variants.map((variant) =>
      withRatio(values.get(`SD 1.5 ${kind}, ${variant}`), values.get(`SD 1.5 ${kind}, float32`), variant === "float32"),
    ),
  ];
  const bound = variants.map((variant) => {
    const value = values.get(`SD 1.5 step, bound, ${variant}`);
    return value === undefined ? "" : `${round(value / values.get(`SD 1.5 step, ${variant}`))} x`;
  });
  return markdown([
    ["SD 1.5 UNet", "fp32, merged", "fp32, adapters as inputs", "W8A16", "W8A8"],
    row("step", "ms"),
    ["step with a rank-16 adapter, against without", ...bound],
    row("peak memory", "MB"),
    row("file", "MB"),
  ]);
}

function withRatio(value, base, isBase) {
  if (value === undefined) return "";
  return isBase || !base ? round(value) : `${round(value)} (${round(value / base)} x)`;
}

function switchingTable({ figures }) {
  const value = (name) => figures.find((figure) => figure.name === name)?.value;
  const against = (name) => `${round(value(name))} (${round(value(name) / value("step, merged"))} x)`;
  return markdown([
    ["", "time, ms"],
    ["change the task: `use(task)`, no session, no copy", round(value("switch: use(task)"))],
    ["open a session of a merged UNet instead", round(value("new session of a merged UNet"))],
    ["denoising step, adapter merged into the weights", round(value("step, merged"))],
    ["adapters as inputs, none bound", against("step, unbound")],
    ["adapters as inputs, rank 8 bound", against("step, bound, rank 8")],
    ["adapters as inputs, rank 16 bound", against("step, bound, rank 16")],
  ]);
}

/** PyTorch's figures are of another machine of two cores. */
function trainingTable({ figures }) {
  const value = (name) => figures.find((figure) => figure.name === name)?.value;
  return markdown([
    ["training step of the pocket UNet, batch 16, rank 8", "Quad", "PyTorch 1.13 with diffusers"],
    ["forward, backward and update, ms", round(value("training step")), "350"],
    ["peak memory, MB", round(value("peak memory, step")), "442"],
  ]);
}
