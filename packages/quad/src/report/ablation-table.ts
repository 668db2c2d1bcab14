import { mean } from "../metrics/mean.ts";
import type { Ablation, AblationRow, Figures } from "../records/ablation.ts";

/** The mean over a row's tasks. */
export function meanOf({ tasks }: AblationRow, key: "psnr" | "ssim" | "sqnr"): number {
  return mean(Object.values(tasks).map((task) => task[key]));
}

/** Cells of the ablation's table, the heading first: PSNR in dB and SSIM per task, means, and the denoiser's SQNR in dB. */
export function ablationTable({ rows }: Ablation): string[][] {
  const tasks = Object.keys(rows[0]?.tasks ?? {});
  const cell = ({ psnr, ssim }: Pick<Figures, "psnr" | "ssim">) => `${psnr.toFixed(1)} / ${ssim.toFixed(3)}`;
  return [
    ["variant", ...tasks, "mean", "SQNR dB"],
    ...rows.map((row) => [
      row.name,
      ...tasks.map((task) => (row.tasks[task] ? cell(row.tasks[task]) : "")),
      cell({ psnr: meanOf(row, "psnr"), ssim: meanOf(row, "ssim") }),
      meanOf(row, "sqnr").toFixed(1),
    ]),
  ];
}
