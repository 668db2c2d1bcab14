// What distillation brings, end to end: `quad build` of the pocket model at both widths, then pictures of cases that neither
// calibration nor training has seen, against full precision with the same noise. QUAD_DISTILLED_PICTURES changes their
// number per task (16). Builds and pictures are kept in benchmarks/results/distillation and used again.
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, evaluate, loadConfig, readProfile } from "quad-lora";
import { createTerminal, formatTable } from "../packages/quad/dist/cli/terminal.js";

const pocket = fileURLToPath(new URL("../models/pocket", import.meta.url));
const results = fileURLToPath(new URL("results", import.meta.url));
/** All activations between layers have 16 bits, as on the paper's chips; what differs is what goes into the layers. */
const widths = { W8A16: 0, W8A8: 1 };
const columns = { own: "own profile", untrained: "shared, untrained", candidate: "shared, distilled" };

export default async function bench() {
  const pictures = Number(process.env.QUAD_DISTILLED_PICTURES ?? 16);
  const terminal = createTerminal(false);
  const onProgress = (stage, done, total, detail) => terminal.progress(stage, done, total, detail);
  const given = await loadConfig(join(pocket, "quad.config.json"));
  const figures = [];
  const tables = {};
  const notes = [`${pictures} held-out pictures a task; the bundles are for NPUs: static QDQ graphs, run on the CPU.`];
  for (const [width, narrowShare] of Object.entries(widths)) {
    const folder = join(results, "distillation", width);
    const config = {
      ...given,
      target: "npu",
      policy: { ...given.policy, narrowShare },
      out: join(folder, "bundle"),
      work: join(folder, "work"),
    };
    const seconds = await timedBuild(config, onProgress);
    const { strategy } = await readProfile(join(config.out, "profile.json"));
    const evaluation = await evaluate(config.out, {
      ...{ against: pocket, config, out: join(folder, "evaluation"), pictures, layerCalls: 0, onProgress },
      simulate: ["untrained", "own"],
    });
    terminal.endProgress();
    tables[width] = tableOf(evaluation, strategy.anchor);
    for (const { task, psnr } of tables[width]) {
      figures.push({ name: `error, ${width}, ${task}`, value: errorOf(psnr.candidate), unit: "/255", runs: pictures });
    }
    notes.push(...describe(width, tables[width], strategy));
    if (seconds !== null) {
      figures.push({ name: `distillation, ${width}, an adapter`, value: seconds, unit: "s", runs: 1, tolerance: 0.5 });
    }
  }
  return { title: "pocket model, adapters distilled on the shared profile", figures, notes, tables, pictures };
}

/** Builds, and gives the seconds that an adapter's teacher and training took on average; null where they were done before. */
async function timedBuild(config, onProgress) {
  let before = performance.now();
  let spent = 0;
  let adapters = 0;
  let isComplete = true;
  await build(config, {
    onProgress,
    onStage: (name, { reused }) => {
      const now = performance.now();
      if (name.startsWith("teacher ")) adapters++;
      if (/^(teacher|distill) /.test(name)) {
        spent += (now - before) / 1000;
        isComplete &&= !reused;
      }
      before = now;
    },
  });
  return isComplete && adapters > 0 ? spent / adapters : null;
}

function tableOf({ tasks }, anchor) {
  return tasks.map(({ task, results: drawn }) => {
    const means = (metric) =>
      Object.fromEntries(Object.keys(columns).map((name) => [name, drawn[name]?.summary?.metrics[metric].mean]));
    return { task, isAnchor: task === anchor, psnr: means("psnr"), ssim: means("ssim") };
  });
}

/** Differences below it, dB, are no gap: as much comes and goes with the pictures. */
const leastGap = 1;

/** Share of the gap between the shared profile without training and an own profile that training closes; null without a gap. */
function recovered({ own, untrained, candidate }) {
  return own - untrained >= leastGap ? (candidate - untrained) / (own - untrained) : null;
}

function describe(width, table, { kind, anchor, reason }) {
  const cell = (row, name) => `${row.psnr[name].toFixed(1)} / ${row.ssim[name].toFixed(3)}`;
  const rows = table.map((row) => {
    const share = recovered(row.psnr);
    return [
      row.task + (row.isAnchor ? " (anchor)" : ""),
      ...Object.keys(columns).map((name) => cell(row, name)),
      share === null ? "no gap" : `${(100 * share).toFixed(0)} %`,
    ];
  });
  const header = [width, ...Object.values(columns), "gap recovered"];
  return [
    ...formatTable([header, ...rows]).split("\n"),
    `PSNR dB / SSIM. ${kind}${anchor ? ` (${anchor})` : ""}: ${reason}.`,
  ];
}

/** Error instead of PSNR: figures of benchmarks get worse when they grow. */
function errorOf(psnr) {
  return 255 * 10 ** (-psnr / 20);
}
