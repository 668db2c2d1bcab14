import * as Plot from "@observablehq/plot";
import type { Evaluation, PointRange } from "../../records/evaluation.ts";
import { clippedAt, limits } from "../findings.ts";
import { percent } from "../format.ts";
import { type Html, html, type Section, table } from "../html.ts";
import { drawPlot, shade } from "../plots.ts";

const overviewPoints = 12;
const detailPoints = 4;

/** What the shared grids clip, where, and at which time steps. */
export function rangesSection({ ranges, noise }: Evaluation): Section | null {
  if (!ranges || ranges.points.length === 0) return null;
  const { points, stepGroups } = ranges;
  const tasks = [...new Set(points.flatMap((point) => Object.keys(point.tasks)))];
  const worst = (point: PointRange) =>
    Math.max(...Object.values(point.tasks).flatMap((groups) => groups.map(({ clipped }) => clipped)));
  const clipping = points.filter((point) => worst(point) > 0).sort((a, b) => worst(b) - worst(a));
  // Ranges matter where they clip and where layers cost most.
  const costs = (layer: string) =>
    Math.max(0, ...Object.values(noise?.tasks ?? {}).map(({ layers }) => layers[layer] ?? 0));
  const costly = [...points].sort((a, b) => costs(b.layer) - costs(a.layer));
  const details = [...new Set([...clipping.slice(0, detailPoints / 2), ...costly])].slice(0, detailPoints);
  const heat = (share: number) =>
    html`<span class="heat${share > 0.1 && " strong"}" style="background:${shade(Math.sqrt(share) * 1.4)}">${percent(share)}</span>`;
  const rows = clipping
    .slice(0, overviewPoints)
    .map((point) => [
      html`<code>${point.point.split(".").map((part, index) => (index === 0 ? part : html`.<wbr>${part}`))}</code>`,
      `${point.bits} bits`,
      ...tasks.map((task) => heat(Math.max(0, ...(point.tasks[task] ?? []).map(({ clipped }) => clipped)))),
    ]);
  return {
    id: "ranges",
    title: "Ranges: what clips where",
    short: "Ranges",
    body: html`${
      rows.length > 0
        ? table(
            `Layer inputs that clip most (${clipping.length} of ${points.length} clip anything): largest share of a task's values outside of the shared grid, over groups of time steps`,
            ["layer input", "grid", ...tasks],
            rows,
            "figures layers",
          )
        : html`<p>Nothing that calibration saw lies outside of the shared grids.</p>`
    }
<p class="muted">From calibration's histograms; a layer that quantizes well clips a little, because the range with the least error leaves out rare values.
Below: the spread of values by task and group of time steps (1 is the noisiest of ${stepGroups}), over the grid's range; red where more than ${100 * limits.clipped} % are clipped.</p>
${details.map((point) => detailPlot(point, tasks))}`,
  };
}

function detailPlot(point: PointRange, tasks: readonly string[]): Html {
  const data = tasks.flatMap((task) =>
    (point.tasks[task] ?? []).map(({ min, max, clipped }, group) => ({ task, group: group + 1, min, max, clipped })),
  );
  const most = Math.max(...tasks.map((task) => clippedAt(task, point.layer, { stepGroups: 0, points: [point] })));
  return drawPlot(
    `Values at ${point.point} by task and time step, with the grid's range`,
    `${point.point}: ${point.bits} bits from ${point.low.toPrecision(3)} to ${point.high.toPrecision(3)}, clips at most ${percent(most)}`,
    {
      height: 220,
      marginLeft: 60,
      marginTop: 34,
      fx: { label: null, domain: [...tasks] },
      x: { label: "time steps", type: "band" },
      y: { label: null, grid: true, nice: true },
      marks: [
        Plot.rect([point], { y1: "low", y2: "high", fill: "var(--good)", fillOpacity: 0.16, inset: 0 }),
        Plot.ruleY([point.low, point.high], { stroke: "var(--good)", strokeDasharray: "4 3" }),
        Plot.ruleX(data, {
          fx: "task",
          x: "group",
          y1: "min",
          y2: "max",
          stroke: ({ clipped }) => (clipped >= limits.clipped ? "var(--poor)" : "var(--series-0)"),
          strokeWidth: 6,
          title: ({ task, group, min, max, clipped }) =>
            `${task}, steps ${group}: ${min.toPrecision(3)} to ${max.toPrecision(3)}, ${percent(clipped)} clipped`,
        }),
      ],
    },
  );
}
