// What quantization costs in quality, end to end: `quad ablate` over the pocket model. QUAD_PICTURES changes the number of
// held-out pictures per task (32), QUAD_VARIANTS (a regular expression over names) the rows; rows that are measured already are
// kept in benchmarks/results/ablation.json.
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ablate, ablationTable, ablationVariants, loadConfig, meanOf } from "quad-lora";
import { createTerminal, formatTable } from "../packages/quad/dist/cli/terminal.js";

const pocket = fileURLToPath(new URL("../models/pocket", import.meta.url));
const results = fileURLToPath(new URL("results", import.meta.url));

export default async function bench() {
  const config = await loadConfig(join(pocket, "quad.config.json"));
  const terminal = createTerminal(false);
  const wanted = process.env.QUAD_VARIANTS;
  const ablation = await ablate(
    { ...config, work: join(results, "work") },
    {
      out: join(results, "ablation.json"),
      pictures: Number(process.env.QUAD_PICTURES ?? 32),
      processes: 2,
      ...(wanted ? { variants: ablationVariants().filter(({ name }) => new RegExp(wanted).test(name)) } : {}),
      onProgress: (stage, done, total) => terminal.progress(stage, done, total),
    },
  );
  terminal.endProgress();
  const seconds = ablation.rows.reduce((sum, row) => sum + row.seconds, 0);
  return {
    title: `pocket model in simulation, ${ablation.pictures} held-out pictures a task, against full precision with the same noise`,
    // Error instead of PSNR: figures of benchmarks get worse when they grow.
    figures: ablation.rows.map((row) => ({
      name: `error, ${row.name}`,
      value: 255 * 10 ** (-meanOf(row, "psnr") / 20),
      unit: "/255",
      runs: ablation.pictures * Object.keys(row.tasks).length,
    })),
    notes: [
      ...formatTable(ablationTable(ablation)).split("\n"),
      `PSNR dB / SSIM; SQNR: of the denoiser's output on recorded calls. Anchor: ${ablation.anchor}.`,
      "own: every task on a profile of its own; anchor, unified: one profile for all, without training.",
      `${(seconds / 60).toFixed(0)} process minutes.`,
    ],
    ablation,
  };
}
