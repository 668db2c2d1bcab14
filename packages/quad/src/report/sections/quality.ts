import * as Plot from "@observablehq/plot";
import { type Evaluation, lessIsBetter } from "../../records/evaluation.ts";
import { fixed, significant } from "../format.ts";
import { type Html, html, type Section, table } from "../html.ts";
import { colorsFor, drawPlot } from "../plots.ts";

const columns: [key: string, heading: string, digits: number][] = [
  ["psnr", "PSNR dB", 2],
  ["ssim", "SSIM", 4],
  ["msssim", "MS-SSIM", 4],
  ["ssimulacra2", "SSIMULACRA 2", 1],
  ["lpips", "LPIPS", 4],
  ["clipSimilarity", "CLIP image similarity", 4],
  ["clipScore", "CLIP score", 2],
  ["clipDirection", "CLIP directional similarity", 4],
];

/** Figures of every task and variant against full precision. */
export function qualitySection({ tasks, variants, msssimScales }: Evaluation): Section {
  const compared = variants.filter(({ kind }) => kind !== "reference");
  const present = columns.filter(([key]) =>
    tasks.some(({ results }) => Object.values(results).some(({ summary }) => summary?.metrics[key])),
  );
  const hasFid = tasks.some(({ results }) =>
    Object.values(results).some(({ summary }) => typeof summary?.fid === "number"),
  );
  const rows = tasks.flatMap(({ task, results }) =>
    compared.flatMap(({ name, label }) => {
      const summary = results[name]?.summary;
      if (!summary) return [];
      const cells = present.map(([key, , digits]) => {
        const value = summary.metrics[key];
        return value ? html`${fixed(value.mean, digits)} <small>${fixed(value.worst, digits)}</small>` : "";
      });
      const distances = [significant(summary.frechetVae), ...(hasFid ? [significant(summary.fid ?? null)] : [])];
      return [[html`${task} <span class="muted">${label}</span>`, summary.pictures, ...cells, ...distances]];
    }),
  );
  const headings = [
    "task",
    "pictures",
    ...present.map(([, heading]) => heading),
    "VAE Fréchet",
    ...(hasFid ? ["FID"] : []),
  ];
  const less = present.filter(([key]) => lessIsBetter.has(key)).map(([, heading]) => heading);
  return {
    id: "quality",
    title: "Quality against full precision",
    short: "Quality",
    body: html`${qualityPlot(tasks, compared)}
${table("Mean over the pictures, and in small the worst picture. Every picture is compared with the full-precision one from the same noise.", headings, rows, "figures")}
<p class="muted">More is better, but for ${["the Fréchet distances", ...less].join(", ")}. ${
      msssimScales < 5 &&
      `MS-SSIM rests on ${msssimScales} of its five scales, which is all that fits these pictures: its values compare only with such. `
    }VAE Fréchet is the Fréchet distance between features of the model's own autoencoder (mean latents on a 4 × 4 grid); it is not a FID, compares only within one model, and is biased upwards for few pictures.</p>`,
  };
}

function qualityPlot(tasks: Evaluation["tasks"], compared: Evaluation["variants"]): Html {
  const data = tasks.flatMap(({ task, results }) =>
    compared.flatMap(({ name, label }) =>
      (results[name]?.metrics ?? []).map(({ psnr }, index) => ({ task, label, psnr, picture: index + 1 })),
    ),
  );
  const labels = compared.map(({ label }) => label);
  const title = ({ task, label, psnr, picture }: (typeof data)[number]) =>
    `${task}, ${label}, picture ${picture}: ${psnr.toFixed(1)} dB`;
  return drawPlot(
    "PSNR of every picture against full precision, by task and variant",
    "Every picture's PSNR (dots) and the median (bars), dB",
    {
      height: 60 + 24 * labels.length * tasks.length,
      marginLeft: 170,
      marginRight: 90,
      fy: { label: null, domain: tasks.map(({ task }) => task) },
      y: { label: null, domain: labels },
      x: { label: "PSNR, dB →", grid: true, nice: true },
      color: colorsFor(labels),
      marks: [
        Plot.ruleX([33], { stroke: "var(--muted)", strokeDasharray: "4 3" }),
        Plot.dot(data, { fy: "task", y: "label", x: "psnr", fill: "label", fillOpacity: 0.55, r: 4, title }),
        Plot.tickX(
          data,
          Plot.groupY({ x: "median" }, { fy: "task", y: "label", x: "psnr", stroke: "label", strokeWidth: 3 }),
        ),
      ],
    },
  );
}
