import * as Plot from "@observablehq/plot";
import { type Html, html, type Section } from "../html.ts";
import type { Curve } from "../inputs.ts";
import { drawPlot } from "../plots.ts";

/** Points that a line has at most: means of neighbouring steps. */
const points = 240;

/** Loss during distillation or training, one chart per run. */
export function curvesSection(curves: readonly Curve[]): Section | null {
  const shown = curves.filter(({ losses }) => losses.length > 1);
  if (shown.length === 0) return null;
  return {
    id: "curves",
    title: "Distillation curves",
    short: "Curves",
    body: html`<div class="pair">${shown.map(curvePlot)}</div>`,
  };
}

function curvePlot({ name, losses, evaluations }: Curve): Html {
  const width = Math.max(1, Math.ceil(losses.length / points));
  const data = Array.from({ length: Math.ceil(losses.length / width) }, (_, index) => {
    const part = losses.slice(index * width, (index + 1) * width);
    return { step: index * width + part.length, loss: part.reduce((sum, loss) => sum + loss, 0) / part.length };
  });
  const isPositive = [...data.map(({ loss }) => loss), ...evaluations.map(({ value }) => value)].every(
    (value) => value > 0,
  );
  const [first, last] = [data[0].loss, data[data.length - 1].loss];
  return drawPlot(
    `Loss of ${name} over training steps, from ${first.toPrecision(3)} to ${last.toPrecision(3)}`,
    `${name}: loss ${first.toPrecision(3)} → ${last.toPrecision(3)} in ${losses.length} steps${evaluations.length > 0 ? "; dots: held-out" : ""}`,
    {
      width: 480,
      height: 220,
      marginLeft: 60,
      x: { label: "step →" },
      y: { type: isPositive ? "log" : "linear", label: null, grid: true, ticks: 4, tickFormat: "~g" },
      marks: [
        Plot.lineY(data, { x: "step", y: "loss", stroke: "var(--series-0)", strokeWidth: 1.5 }),
        Plot.dot(evaluations, {
          x: "step",
          y: "value",
          fill: "var(--accent)",
          r: 3.5,
          title: ({ step, value }) => `step ${step}: ${value}`,
        }),
      ],
    },
  );
}
