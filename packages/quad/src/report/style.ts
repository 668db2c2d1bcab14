const light = `
  --surface: #ffffff; --raised: #f6f7f9; --text: #1c2128; --muted: #5b6470; --line: #d9dee5; --accent: #c2410c;
  --good: #1a7f4b; --fair: #9a6700; --poor: #c62828; --good-soft: #e6f4ec; --fair-soft: #fdf3d8; --poor-soft: #fdeaea;
  --series-0: #2f6fb3; --series-1: #c2410c; --series-2: #2a8a5f; --series-3: #7a7f8a; --series-4: #8250b8; --series-5: #b0407a;
  --series-6: #0f8a9d; --series-7: #8a6d1c;`;
const dark = `
  --surface: #14171c; --raised: #1d2229; --text: #e7eaee; --muted: #9ba5b1; --line: #343b45; --accent: #f08a4b;
  --good: #54c487; --fair: #e0b34a; --poor: #f27d7d; --good-soft: #16301f; --fair-soft: #332a10; --poor-soft: #3a1c1c;
  --series-0: #6ea8e5; --series-1: #f08a4b; --series-2: #5cc497; --series-3: #9aa1ad; --series-4: #b794f0; --series-5: #e889b8;
  --series-6: #4fc3d6; --series-7: #d3b55a;`;

/** The report's style; colours are variables so that charts follow light and dark too. */
export const style = `
:root { color-scheme: light dark; ${light} }
@media (prefers-color-scheme: dark) { :root { ${dark} } }
:root[data-theme="light"] { color-scheme: light; ${light} }
:root[data-theme="dark"] { color-scheme: dark; ${dark} }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 0 24px 64px; background: var(--surface); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header { display: flex; gap: 24px; align-items: flex-start; justify-content: space-between; padding: 32px 0 8px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 12px; }
h3 { font-size: 16px; margin: 20px 0 6px; }
p { margin: 6px 0 10px; }
header p { margin: 4px 0; }
section { margin-top: 44px; scroll-margin-top: 56px; }
.muted, small { color: var(--muted); }
small { font-size: 12px; }
code { font: 12.5px/1.4 ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace; }
a { color: inherit; }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 8px; top: 8px; background: var(--raised); padding: 8px; z-index: 2; }
nav { position: sticky; top: 0; z-index: 1; display: flex; gap: 4px 18px; overflow-x: auto; padding: 10px 0; background: var(--surface);
  border-bottom: 1px solid var(--line); font-size: 14px; white-space: nowrap; }
nav a { text-decoration: none; color: var(--muted); }
nav a:hover { color: var(--text); text-decoration: underline; }
button, select, input { font: inherit; color: inherit; }
#theme, select { background: var(--raised); border: 1px solid var(--line); border-radius: 8px; padding: 5px 12px; cursor: pointer; }
input[type="range"] { accent-color: var(--accent); width: 100%; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.lead { font-size: 18px; margin-bottom: 16px; }
.cards { list-style: none; padding: 0; margin: 0 0 16px; display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.card { border: 1px solid var(--line); border-left: 4px solid var(--good); border-radius: 10px; padding: 14px 18px; background: var(--raised); overflow-wrap: anywhere; }
.card h3 { margin: 0 0 6px; font-size: 17px; }
.card p { margin: 4px 0; }
.card.fair { border-left-color: var(--fair); }
.card.poor { border-left-color: var(--poor); }
.badge { float: right; font-size: 12px; font-weight: 600; padding: 2px 10px; border-radius: 999px; background: var(--good-soft); color: var(--good); }
.fair .badge { background: var(--fair-soft); color: var(--fair); }
.poor .badge { background: var(--poor-soft); color: var(--poor); }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
caption { text-align: left; color: var(--muted); padding-bottom: 6px; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 14px 5px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; font-size: 13px; border-bottom-color: var(--muted); vertical-align: bottom; }
tbody th { font-weight: 500; }
.figures { width: 100%; }
.figures.narrow { width: auto; }
.figures td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.layers th[scope="row"] { max-width: 420px; min-width: 200px; }
.heat { display: inline-block; min-width: 72px; padding: 1px 8px; border-radius: 5px; text-align: right; font-size: 13px; }
.heat.strong { color: var(--surface); }
.chart { margin: 18px 0 8px; }
.chart figcaption { font-size: 13.5px; color: var(--muted); margin-bottom: 4px; overflow-wrap: anywhere; }
.chart svg { min-width: min(960px, 640px); max-width: 100%; height: auto; overflow: visible; font-family: inherit; }
.pair { display: grid; gap: 0 32px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.pair .chart svg { min-width: 0; }
.sheet th, .sheet td { padding: 8px 14px 8px 0; }
.sheet th[scope="row"] { max-width: 150px; font-weight: 500; font-size: 13.5px; }
.sheet thead th { width: 126px; min-width: 98px; }
.sheet td { font-size: 12.5px; line-height: 1.3; }
.thumb { display: block; width: 112px; height: auto; border-radius: 8px; border: 1px solid var(--line); background: #fff; }
.difference { margin: 6px 0 3px; image-rendering: pixelated; background: #000; }
.pick { display: block; padding: 0; border: 0; background: none; cursor: pointer; border-radius: 9px; }
.pick.chosen { outline: 3px solid var(--accent); outline-offset: 1px; }
.task { margin-bottom: 28px; }
.compare { display: flex; flex-wrap: wrap; gap: 20px; margin: 10px 0 18px; }
.compare[hidden] { display: none; }
.stage { --at: 50%; position: relative; width: min(100%, 320px); aspect-ratio: 1; border-radius: 10px; overflow: hidden; border: 1px solid var(--line);
  cursor: ew-resize; touch-action: pan-y; user-select: none; flex: none; background: #fff; }
.stage img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.stage .over { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.line { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff; box-shadow: 0 0 3px #0009; }
.tag { position: absolute; bottom: 8px; padding: 1px 8px; font-size: 12px; border-radius: 999px; background: #000a; color: #fff; pointer-events: none; }
.tag.left { left: 8px; } .tag.right { right: 8px; }
.controls { flex: 1 1 220px; max-width: 380px; display: flex; flex-direction: column; gap: 10px; align-self: center; }
.controls { min-width: 0; }
.controls label { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; }
.controls input[type="range"] { flex: 1; min-width: 120px; width: auto; }
.controls select { max-width: 100%; }
.facts, .variants { display: grid; gap: 6px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); margin: 0 0 14px; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  body { padding: 0 14px 48px; }
  h1 { font-size: 21px; }
  .thumb { width: 84px; }
  .figures { min-width: 520px; }
  .figures.narrow { min-width: 0; }
}
@media print { nav, #theme, .compare { display: none; } .scroll { overflow: visible; } }
`;
