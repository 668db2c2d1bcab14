import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import { Html, html } from "./html.ts";

const { document } = parseHTML("<!doctype html><html><body></body></html>");
let made = 0;

/**
 * Draws a chart as SVG. Colours are the page's own variables, so that charts follow light and dark.
 *
 * @param description - what it shows, for people who do not see it
 */
export function drawPlot(description: string, caption: string, options: Plot.PlotOptions): Html {
  made++;
  const figure = Plot.plot({
    document: document as never,
    className: `plot-${made}`,
    width: 960,
    marginBottom: 42,
    style: { background: "transparent", fontSize: "12px" },
    ...options,
  }) as unknown as { outerHTML: string };
  // Plot marks one of its parts with a white background for tooltips; the page has its own.
  const svg = figure.outerHTML
    .replaceAll("--plot-background: white;", "--plot-background: var(--surface);")
    .replace("<svg ", `<svg role="img" aria-label="${html`${description}`}" `);
  return html`<figure class="chart"><figcaption>${caption}</figcaption><div class="scroll" tabindex="0" role="group" aria-label="chart">${new Html(svg)}</div></figure>`;
}

/** Numbering starts again: the same report comes out for the same input. */
export function restartPlots(): void {
  made = 0;
}

/** Colours that tell tasks apart, defined in the page's style. */
export const palette = Array.from({ length: 8 }, (_, index) => `var(--series-${index})`);

/** A scale of colours for the given names, always the same for the same place in the list. */
export function colorsFor(names: readonly string[]): Plot.ScaleOptions {
  return { domain: [...names], range: names.map((_, index) => palette[index % palette.length]) };
}

/** Shades of one colour: 0 = the page's surface, 1 = the accent. */
export function shade(share: number): string {
  const percent = Math.round(100 * Math.min(Math.max(share, 0), 1));
  return `color-mix(in oklab, var(--accent) ${percent}%, var(--surface))`;
}
