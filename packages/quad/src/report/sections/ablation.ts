import { mean } from "../../metrics/mean.ts";
import type { Ablation } from "../../records/ablation.ts";
import type { AblationRow } from "../../records/evaluation.ts";
import { ablationTable } from "../ablation-table.ts";
import { fixed, significant } from "../format.ts";
import { type Html, html, type Section, table } from "../html.ts";

/** Table of arXiv 2603.29535 on Stable Diffusion 1.5, by share of W8A8 layers in percent. */
const paper: Record<number, { psnr: number; ssim: number; lpips: number; fid: number }> = {
  0: { psnr: 32.71, ssim: 0.981, lpips: 0.108, fid: 12.23 },
  40: { psnr: 32.68, ssim: 0.981, lpips: 0.109, fid: 13.05 },
  80: { psnr: 31.41, ssim: 0.978, lpips: 0.113, fid: 14.28 },
  100: { psnr: 5.4, ssim: 0.23, lpips: 0.699, fid: 599 },
};

/** Quality by share of layers with 8-bit activations, and tables of other ways to quantize. */
export function ablationSection(rows: readonly AblationRow[], files: readonly Ablation[]): Section | null {
  const filled = files.filter(({ rows: list }) => list.length > 0);
  if (rows.length === 0 && filled.length === 0) return null;
  return {
    id: "ablation",
    title: "Share of 8-bit layers",
    short: "8-bit share",
    body: html`${rows.length > 0 && sharesTable(rows)}${filled.map(variantsTable)}`,
  };
}

function variantsTable(ablation: Ablation): Html {
  const [headings, ...cells] = ablationTable(ablation);
  const caption = `Ways to quantize, in simulation for the target ${ablation.placement}: PSNR in dB / SSIM against full precision, ${ablation.pictures} held-out pictures per task; "anchor" is ${ablation.anchor}`;
  return table(caption, headings, cells, "figures");
}

function sharesTable(rows: readonly AblationRow[]): Html {
  const sorted = [...rows].sort((a, b) => (a.share ?? 2) - (b.share ?? 2));
  const cells = sorted.map(({ share, narrowLayers, tasks }) => {
    const summaries = Object.entries(tasks);
    const overTasks = (pick: (task: AblationRow["tasks"][string]) => number | undefined) => {
      const values = summaries.map(([, summary]) => pick(summary)).filter((value) => value !== undefined);
      return values.length > 0 ? mean(values) : null;
    };
    const metric = (name: string) => overTasks(({ metrics }) => metrics[name]?.mean);
    const [worstTask, worst] = summaries.reduce((a, b) => (b[1].metrics.psnr.mean < a[1].metrics.psnr.mean ? b : a));
    const published = share === null ? undefined : paper[Math.round(100 * share)];
    return [
      share === null ? "8 bits everywhere" : `${Math.round(100 * share)} : ${100 - Math.round(100 * share)}`,
      share === null ? "all, and between" : narrowLayers,
      fixed(metric("psnr"), 2),
      html`${fixed(worst.metrics.psnr.mean, 2)} <small>${worstTask}</small>`,
      fixed(metric("ssim"), 4),
      fixed(metric("ssimulacra2"), 1),
      significant(metric("lpips")),
      significant(overTasks(({ frechetVae }) => frechetVae ?? undefined)),
      published ? `${published.psnr} / ${published.ssim}` : "",
    ];
  });
  return table(
    "Quality by share of layers whose inputs have 8 bits (W8A8 : W8A16), without training, means over tasks; at the right what the paper reports for Stable Diffusion 1.5",
    [
      "W8A8 : W8A16",
      "8-bit layers",
      "PSNR dB",
      "worst task",
      "SSIM",
      "SSIMULACRA 2",
      "LPIPS",
      "VAE Fréchet",
      "paper: PSNR / SSIM",
    ],
    cells,
    "figures",
  );
}
