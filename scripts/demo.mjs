// Every task of the pocket model, for four subjects, from one opened pipeline: demo-output/contact-sheet.png
import { readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { openPipeline } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { expose, folderFiles, readImage, readMask, writeFileAtomically } from "quad-lora";
import { createTerminal, formatDuration, formatTable } from "../packages/quad/dist/cli/terminal.js";
import { formatBytes } from "../packages/quad/dist/report/format.js";
import { drawContactSheet, wrap } from "./contact-sheet.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const model = join(root, "models/pocket");
const output = join(root, "demo-output");
const exposed = join(output, "exposed");
const subjects = [
  { name: "pizza", prompt: "slice of pizza food prepared", seed: 10 },
  { name: "dog face", prompt: "dog face animal mammal", seed: 3 },
  { name: "crab", prompt: "crab animal marine", seed: 4 },
  { name: "tulip", prompt: "tulip plant flower", seed: 9 },
];

/** Shown one after the other where a task takes several. */
const prompts = { transform: ["make it grey", "flat style", "3d style", "make it grey"] };

const terminal = createTerminal(false);
const started = performance.now();

const adapterPaths = {};
for (const entry of (await readdir(join(model, "adapters"))).sort()) {
  adapterPaths[basename(entry, ".safetensors")] = join(model, "adapters", entry);
}
const { adapters } = await expose(model, {
  out: exposed,
  adapters: adapterPaths,
  onProgress: terminal.progress,
});
terminal.endProgress();

let sessions = 0;
const pipeline = await openPipeline({
  ort: countingSessions(),
  files: folderFiles(exposed),
  sessionOptions: { logSeverityLevel: 3 },
});
// The encoder of the autoencoder opens with the first picture that needs it; it is part of opening, not of a task.
await pipeline.inputsOf("vae_encoder");
const opened = sessions;
await pipeline.generate({ prompt: subjects[0].prompt, seed: 1, steps: 1 });
const size = pipeline.defaultSize;

const rows = [];
const table = [["task", "adapter", "rank", "size", "first use ms", "switch ms", "ms/step", "s/image"]];
let pictures = 0;
terminal.progress("drawing", 0, pipeline.tasks.length * subjects.length);
for (const name of pipeline.tasks) {
  const task = pipeline.task(name);
  const firstUse = await milliseconds(() => pipeline.use(name));
  const switching = await switchTime(name);
  const cells = [];
  const stepTimes = [];
  let total = 0;
  const ownInputs = await ownSamples(name);
  for (const [index, subject] of subjects.entries()) {
    const inputs = await sampleInputs(task, subject.name, ownInputs, index);
    let last = performance.now();
    const image = await pipeline.generate({
      prompt: prompts[name]?.[index] ?? task.prompt ?? subject.prompt,
      seed: subject.seed,
      ...inputs,
      onStep: ({ step }) => {
        const now = performance.now();
        // The first step's time includes the encoders.
        if (step > 1) stepTimes.push(now - last);
        last = now;
      },
    });
    // A picture of NaN is plain black: better no sheet than one that hides a fault.
    if (!image.latents.every(Number.isFinite)) throw new Error(`task ${name} gave latents that are not finite`);
    total += image.milliseconds.encode + image.milliseconds.denoise + image.milliseconds.decode;
    cells.push({ picture: image, ...(inputs.image ? { input: shownInput(inputs) } : {}) });
    terminal.progress("drawing", ++pictures, pipeline.tasks.length * subjects.length);
  }
  const used = adapters.filter((adapter) => adapter.name === task.adapter || adapter.name === name)[0];
  const bytes = used ? (await stat(join(exposed, "adapters", `${used.name}.safetensors`))).size : 0;
  table.push([
    name,
    used?.name ?? "none",
    used ? String(used.rank) : "",
    used ? formatBytes(bytes) : "",
    Number(firstUse.toFixed(1)),
    Number(switching.toFixed(3)),
    Number(median(stepTimes).toFixed(1)),
    Number((total / subjects.length / 1000).toFixed(2)),
  ]);
  const facts = used ? `rank ${used.rank}, ${formatBytes(bytes)}` : "no adapter";
  rows.push({ title: name, lines: [...wrap(task.description ?? "", 30), facts], cells });
}
terminal.endProgress();
const reopened = sessions - opened;
await pipeline.dispose();

const footer = `models/pocket, ${opened} graphs opened once, ${rows.length} tasks, ${reopened} sessions created while switching. Small pictures: the task's input.`;
const sheet = join(output, "contact-sheet.png");
await writeFileAtomically(
  sheet,
  await drawContactSheet(
    subjects.map(({ name }) => name),
    rows,
    footer,
  ),
);

terminal.print(`${formatTable(table)}\n`);
terminal.print(
  `first use: the adapter's file is read; switch: it is in memory. Sessions created after opening: ${reopened}.`,
);
terminal.print(`Wrote demo-output/contact-sheet.png in ${formatDuration(performance.now() - started)}.`);
terminal.print(
  'The exposed model stays in demo-output/exposed: npx quad run demo-output/exposed --task flat --prompt "cat face" --out cat.png',
);

function countingSessions() {
  const create = (...parameters) => {
    sessions++;
    return ort.InferenceSession.create(...parameters);
  };
  return { Tensor: ort.Tensor, InferenceSession: { create } };
}

/** Sample pictures of a task's own: `sketch-crab.png`. */
async function ownSamples(name) {
  const files = await readdir(join(model, "samples"));
  return files.filter((file) => file.startsWith(`${name}-`)).sort();
}

/** What a task needs besides the prompt: its own sample of the subject, else any of its own, else the subject's picture. */
async function sampleInputs(task, subject, own, index) {
  const samples = join(model, "samples");
  const wanted = task.inputs ?? [];
  const file = `${subject.replaceAll(" ", "-")}.png`;
  const fitting = own.find((name) => name.endsWith(`-${file}`)) ?? own[index % own.length] ?? `picture-${file}`;
  const result = {};
  if (wanted.includes("image")) result.image = await readImage(join(samples, fitting), size);
  if (wanted.includes("mask")) result.mask = await readMask(join(samples, "mask.png"), size);
  return result;
}

/** The input picture, with what is to be painted in grey. */
function shownInput({ image, mask }) {
  if (!mask) return image;
  const data = Uint8Array.from(image.data, (value, index) => (mask.data[Math.floor(index / 3)] > 127 ? 128 : value));
  return { ...image, data };
}

/** Median time of `use(name)` with the adapter in memory, coming from the base each time. */
async function switchTime(name) {
  const times = [];
  for (let run = 0; run < 21; run++) {
    await pipeline.use(null);
    times.push(await milliseconds(() => pipeline.use(name)));
  }
  return median(times);
}

async function milliseconds(work) {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

function median(values) {
  return values.length === 0 ? 0 : [...values].sort((a, b) => a - b)[values.length >> 1];
}
