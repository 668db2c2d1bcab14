import { Html, html, type Section } from "./html.ts";
import { script } from "./script.ts";
import { style } from "./style.ts";

/** The whole document. Nothing is loaded: style, script and pictures stand in it, and the policy forbids anything else. */
export function page(parts: {
  title: string;
  subtitle: string;
  summary: Html;
  sections: readonly Section[];
  missing: readonly string[];
  provenance: Html;
}): Html {
  const { title, subtitle, summary, sections, missing, provenance } = parts;
  const policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${title}</title>
<style>${new Html(style)}</style>
</head>
<body>
<a class="skip" href="#summary">To the summary</a>
<header><div><h1>${title}</h1><p class="muted">${subtitle}</p></div><button type="button" id="theme" hidden>Dark</button></header>
<nav aria-label="parts">${[{ id: "summary", short: "In short" }, ...sections, { id: "run", short: "What was run" }].map(
    ({ id, short }) => html`<a href="#${id}">${short}</a>`,
  )}</nav>
<main>
${summary}
${sections.map(
  ({
    id,
    title: name,
    body,
  }) => html`<section id="${id}" aria-labelledby="${id}-title"><h2 id="${id}-title">${name}</h2>
${body}
</section>
`,
)}
${
  missing.length > 0 &&
  html`<section id="missing" aria-labelledby="missing-title"><h2 id="missing-title">Not in this report</h2><ul>${missing.map((hint) => html`<li>${hint}</li>`)}</ul></section>`
}
${provenance}
</main>
<script>${new Html(script)}</script>
</body>
</html>
`;
}
