import * as Plot from "@observablehq/plot";
import type { Evaluation } from "../../records/evaluation.ts";
import { formatBytes, percent, significant } from "../format.ts";
import { type Html, html, type Section, table } from "../html.ts";
import type { Benchmarks } from "../inputs.ts";
import { drawPlot } from "../plots.ts";

const counts = [1, 2, 5, 10];

/** What shipping N tasks takes: merged copies of the model against one graph with adapters. */
export function storageSection({ reference, candidate }: Evaluation): Section | null {
  const sizes = Object.values(candidate.storage.adapters);
  if (sizes.length === 0) return null;
  const mean = sizes.reduce((sum, size) => sum + size, 0) / sizes.length;
  const ways = [
    { way: "merged, full precision", bytes: (tasks: number) => tasks * reference.storage.base },
    { way: "merged, as small as the bundle", bytes: (tasks: number) => tasks * candidate.storage.base },
    {
      way: candidate.kind === "bundle" ? "bundle" : "evaluated folder",
      bytes: (tasks: number) => candidate.storage.base + tasks * mean,
    },
  ];
  const data = counts.flatMap((tasks) => ways.map(({ way, bytes }) => ({ tasks, way, bytes: bytes(tasks) })));
  const ratio = (tasks: number) => ways[1].bytes(tasks) / ways[2].bytes(tasks);
  const unit = Math.max(...data.map(({ bytes }) => bytes)) > 2e9 ? 1e9 : 1e6;
  const names = ways.map(({ way }) => way);
  return {
    id: "storage",
    title: "Storage",
    short: "Storage",
    body: html`${drawPlot(
      "Storage for 1 to 10 tasks, merged and as one graph with adapters",
      `Storage by number of tasks, ${unit === 1e9 ? "GB" : "MB"}`,
      {
        height: 70 + counts.length * 78,
        marginLeft: 230,
        marginRight: 90,
        fy: { label: null, tickFormat: (count: number) => `${count} ${count === 1 ? "task" : "tasks"}` },
        y: { label: null, domain: names },
        x: { label: null, grid: true, transform: (bytes: number) => bytes / unit },
        color: { domain: names, range: ["var(--series-3)", "var(--series-0)", "var(--accent)"] },
        marks: [
          Plot.barX(data, { fy: "tasks", y: "way", x: "bytes", fill: "way" }),
          Plot.text(data, {
            fy: "tasks",
            y: "way",
            x: "bytes",
            text: ({ bytes }) => formatBytes(bytes),
            textAnchor: "start",
            dx: 5,
            fill: "currentColor",
          }),
          Plot.ruleX([0]),
        ],
      },
    )}
<p>At 10 tasks the ${names[2]} takes ${percent(1 / ratio(10))} of what ten merged models of its own precision take: ${ratio(10).toFixed(1)} times less. Its adapters are ${percent(mean / candidate.storage.base)} of its base each.</p>
${table(
  "Bytes on disk",
  ["what", "size"],
  [
    ["full-precision model", formatBytes(reference.storage.base)],
    [`${names[2]}, without adapters`, formatBytes(candidate.storage.base)],
    ...Object.entries(candidate.storage.adapters).map(([name, bytes]) => [`adapter ${name}`, formatBytes(bytes)]),
  ],
  "figures narrow",
)}`,
  };
}

/** Times and memory of `npm run bench`, where its results are given. */
export function benchmarksSection(benchmarks: readonly Benchmarks[]): Section | null {
  const parts = benchmarks.flatMap(({ machine, results }) =>
    Object.values(results).map(({ title, figures, notes }) => {
      const times = figures.filter(({ unit, value }) => unit === "ms" && value > 0);
      const byName = new Map(figures.map((figure) => [figure.name, figure.value]));
      const rows = figures.map(({ name, value, unit, runs, baseline }) => {
        const base = baseline === undefined ? undefined : byName.get(baseline);
        return [name, significant(value), unit, runs ?? "", base ? `${significant(value / base)} × ${baseline}` : ""];
      });
      return html`<h3>${title}</h3><p class="muted">${machine.cpu}, ${machine.cores} cores</p>
${times.length > 1 && timesPlot(title, times)}
${table(`${title}: medians`, ["figure", "median", "unit", "runs", "ratio"], rows, "figures")}
${notesOf(notes)}`;
    }),
  );
  return parts.length > 0
    ? { id: "latency", title: "Latency and memory", short: "Latency", body: html`${parts}` }
    : null;
}

/** Sentences as a list; notes that hold a table of text as they would stand in a terminal. */
function notesOf(notes: readonly string[]): Html | null {
  if (notes.length === 0) return null;
  const hasTable = notes.some((note) => /^ *-{3,}( +-{3,})+ *$/.test(note));
  if (hasTable) return html`<div class="scroll"><pre class="muted">${notes.join("\n")}</pre></div>`;
  return html`<ul class="muted">${notes.map((note) => html`<li>${note}</li>`)}</ul>`;
}

function timesPlot(title: string, times: readonly { name: string; value: number }[]): Html {
  const isWide = Math.max(...times.map(({ value }) => value)) / Math.min(...times.map(({ value }) => value)) > 50;
  return drawPlot(`Times of ${title}`, `Times, ms${isWide ? " (logarithmic)" : ""}`, {
    height: 50 + 24 * times.length,
    marginLeft: 290,
    marginRight: 70,
    x: { type: isWide ? "log" : "linear", label: null, grid: true, ticks: 5, tickFormat: "~g", zero: !isWide },
    y: { label: null, domain: times.map(({ name }) => name) },
    marks: [
      isWide
        ? Plot.dot(times, { y: "name", x: "value", fill: "var(--accent)", r: 5 })
        : Plot.barX(times, { y: "name", x: "value", fill: "var(--accent)" }),
      Plot.text(times, {
        y: "name",
        x: "value",
        text: ({ value }) => significant(value),
        textAnchor: "start",
        dx: 8,
        fill: "currentColor",
      }),
    ],
  });
}
