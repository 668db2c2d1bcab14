import * as Plot from "@observablehq/plot";
import type { Evaluation, TaskNoise } from "../../records/evaluation.ts";
import type { Profile } from "../../records/profile.ts";
import { causeShares } from "../findings.ts";
import { decibels, fixed, percent } from "../format.ts";
import { type Html, html, type Section, table } from "../html.ts";
import { drawPlot, shade } from "../plots.ts";

/** QSS of every task with the anchor marked, and what each strategy gives. */
export function scoresSection({ scores, shared, strategy }: Profile): Section {
  const data = Object.entries(scores).map(([task, { qss }]) => ({ task, qss, isAnchor: task === strategy.anchor }));
  const kinds = Object.keys(shared);
  const rows = Object.entries(scores).map(([task, { qss, sqnr }]) => [
    task === strategy.anchor ? html`${task} <strong>anchor</strong>` : task,
    qss.toExponential(2),
    fixed(sqnr, 1),
    ...kinds.map((kind) => fixed(shared[kind][task]?.sqnr, 1)),
  ]);
  const names: Record<string, string> = {
    anchor: "on the anchor's profile",
    unified: "on the merged profile",
    mixed: "on the mixed profile",
  };
  return {
    id: "scores",
    title: "Quantization sensitivity and the anchor",
    short: "Sensitivity",
    body: html`${drawPlot(
      "Quantization sensitivity score of every task",
      "Quantization sensitivity score (QSS), nats: the anchor is the adapter with the highest",
      {
        height: 50 + 30 * data.length,
        marginLeft: 110,
        marginRight: 80,
        x: { label: "QSS, nats →", tickFormat: "~e", grid: true },
        y: { label: null },
        marks: [
          Plot.barX(data, {
            y: "task",
            x: "qss",
            fill: ({ isAnchor }) => (isAnchor ? "var(--accent)" : "var(--series-0)"),
            fillOpacity: ({ isAnchor }) => (isAnchor ? 1 : 0.45),
            sort: { y: "-x" },
            title: ({ task, qss }) => `${task}: ${qss.toExponential(2)}`,
          }),
          Plot.text(data, {
            filter: "isAnchor",
            y: "task",
            x: "qss",
            text: () => "anchor",
            textAnchor: "start",
            dx: 6,
            fontWeight: "bold",
            fill: "currentColor",
          }),
          Plot.ruleX([0]),
        ],
      },
    )}
<p>Profile: <strong>${strategy.kind}</strong>; ${strategy.reason}.</p>
${table(
  "Sensitivity of every task in calibration: QSS on its own profile, and signal to quantization noise of the denoiser's output in dB (more is better)",
  ["task", "QSS", "own profile", ...kinds.map((kind) => names[kind] ?? kind)],
  rows,
  "figures",
)}`,
  };
}

const shownLayers = 14;

/** Which layer costs which task how much. */
export function layersSection(evaluation: Evaluation, profile: Profile | null): Section | null {
  const { noise } = evaluation;
  if (!noise || Object.keys(noise.tasks).length === 0) return profile ? measuredAlone(profile) : null;
  const tasks = Object.entries(noise.tasks);
  const shares = new Map(
    tasks.map(([task, given]) => [
      task,
      new Map(causeShares(given).map(({ cause, layer, share }) => [layer ?? cause, share] as const)),
    ]),
  );
  const layers = new Set(tasks.flatMap(([, given]) => Object.keys(given.layers)));
  const worst = (layer: string) => Math.max(...tasks.map(([task]) => shares.get(task)!.get(layer) ?? 0));
  const ranked = [...layers].sort((a, b) => worst(b) - worst(a) || a.localeCompare(b)).slice(0, shownLayers);
  const heat = (share: number) =>
    html`<span class="heat${share > 0.45 && " strong"}" style="background:${shade(Math.sqrt(share))}">${percent(share)}</span>`;
  const row = (key: string, label: Html | string) => [
    label,
    ...tasks.map(([task]) => heat(shares.get(task)!.get(key) ?? 0)),
  ];
  const rest = [...layers].filter((layer) => !ranked.includes(layer));
  const restShare = (task: string) => rest.reduce((sum, layer) => sum + (shares.get(task)!.get(layer) ?? 0), 0);
  const rows = [
    ["all causes: signal to noise", ...tasks.map(([, given]) => decibels(given.total))],
    row("weights", "rounded weights"),
    row("adapter", "the adapter's rounded factors"),
    ...(tasks.some(([, given]) => given.between !== null) ? [row("between", "values between layers")] : []),
    ...ranked.map((layer) =>
      row(
        layer,
        html`<code>${layer.split(".").map((part, index) => (index === 0 ? part : html`.<wbr>${part}`))}</code>`,
      ),
    ),
    ...(rest.length > 0 ? [[`${rest.length} other layers`, ...tasks.map(([task]) => heat(restShare(task)))]] : []),
  ];
  return {
    id: "layers",
    title: "Where the error comes from",
    short: "Layers",
    body: html`${table(
      "Share of each cause in the error of the denoiser's output, by task: the layers are those whose rounded inputs cost some task most",
      ["cause", ...tasks.map(([task]) => task)],
      rows,
      "figures layers",
    )}
<p class="muted">Measured in simulation on ${noise.calls} denoiser ${noise.calls === 1 ? "call" : "calls"} per task, each cause alone.</p>
${layerPlot(tasks, [...layers])}`,
  };
}

/** All layers in the order of the graph: where along the network tasks lose. */
function layerPlot(tasks: readonly (readonly [string, TaskNoise])[], layers: readonly string[]): Html {
  const data = tasks.flatMap(([task, given]) =>
    layers.map((layer, index) => ({ task, layer, index: index + 1, noise: Math.max(given.layers[layer] ?? 0, 1e-12) })),
  );
  return drawPlot(
    "Noise that each layer's rounded inputs add to the denoiser's output, in the order of the network, by task",
    "Noise of each layer alone over the output's power, in the order of the network (point at a bar for its name)",
    {
      height: 40 + 110 * tasks.length,
      marginLeft: 70,
      marginRight: 90,
      x: { label: "layer, input side first →", interval: 1, ticks: [] },
      y: {
        type: "log",
        label: null,
        ticks: 3,
        tickFormat: ".0e",
        grid: true,
        domain: [Math.min(...data.map(({ noise }) => noise)) / 2, Math.max(...data.map(({ noise }) => noise)) * 2],
      },
      fy: { label: null, domain: tasks.map(([task]) => task) },
      marks: [
        Plot.ruleX(data, {
          fy: "task",
          x: "index",
          y: "noise",
          stroke: "var(--accent)",
          strokeWidth: Math.max(2, 620 / layers.length),
          y1: Math.min(...data.map(({ noise }) => noise)) / 2,
          y2: "noise",
          title: ({ task, layer, noise }) => `${task}, ${layer}: ${decibels(noise)}`,
        }),
      ],
    },
  );
}

/** Without measurements per task: what the profile's own allocation was based on. */
function measuredAlone({ layerSensitivity }: Profile): Section | null {
  const layers = Object.entries(layerSensitivity).sort(([, a], [, b]) => a - b);
  if (layers.length === 0) return null;
  return {
    id: "layers",
    title: "Sensitivity of layers",
    short: "Layers",
    body: table(
      "Signal to noise with only this layer's inputs at 8 bits, over all tasks, dB: the least first",
      ["layer", "dB"],
      layers.slice(0, shownLayers).map(([layer, sqnr]) => [layer, fixed(sqnr, 1)]),
      "figures layers",
    ),
  };
}
