import type { Evaluation, TaskEvaluation } from "../../records/evaluation.ts";
import { fixed } from "../format.ts";
import { type Html, html, type Section } from "../html.ts";
import { embedDifference, embedPicture, fullDifference, largestSide } from "../pictures.ts";

/** Rows that are open from the start. */
const openRows = 4;

/** Contact sheets: a table per task, a row per case, a column per variant, differences below. */
export async function sheetsSection(
  { tasks, variants }: Evaluation,
  trained: ReadonlySet<string>,
  folder: string,
): Promise<Section> {
  const sheets: Html[] = [];
  for (const task of tasks) {
    // Whether training took part is known per task.
    const named = variants.map((variant) =>
      variant.kind === "candidate" && trained.has(task.task)
        ? { ...variant, label: `${variant.label}, distilled` }
        : variant,
    );
    sheets.push(await sheet(task, named, folder));
  }
  const isShrunk = tasks.some(({ cases }) => cases.some(({ width, height }) => Math.max(width, height) > largestSide));
  return {
    id: "pictures",
    title: "Pictures",
    short: "Pictures",
    body: html`<p class="muted">Below each picture: where it differs from full precision, black for no difference, white for ${fullDifference} of 255 steps
or more in some channel. Choose a picture to compare it with the slider.${isShrunk && ` Shown at most ${largestSide} pixels wide; the figures are from the full size.`}</p>
${sheets}`,
  };
}

async function sheet(
  { task, description, cases, results, steps, guidance }: TaskEvaluation,
  variants: Evaluation["variants"],
  folder: string,
): Promise<Html> {
  const shown = variants.filter(({ name }) => results[name]);
  const hasInput = cases.some(({ input }) => input);
  const rows: Html[] = [];
  for (const [index, { prompt, seed, input }] of cases.entries()) {
    const cells: Html[] = [];
    if (hasInput) {
      cells.push(
        html`<td>${input && html`<img class="thumb" src="${await embedPicture(folder, input)}" alt="input of ${task}, picture ${index + 1}">`}</td>`,
      );
    }
    const reference = results.reference.pictures[index];
    for (const { name, label, kind } of shown) {
      const { pictures, metrics } = results[name];
      const alt = `${task}: ${prompt}, seed ${seed}, ${label}`;
      const picture = html`<button type="button" class="pick" data-row="${index}" data-variant="${name}" aria-label="compare: ${alt}"><img class="thumb" src="${await embedPicture(folder, pictures[index])}" alt="${alt}"></button>`;
      if (kind === "reference") {
        cells.push(html`<td>${picture}</td>`);
        continue;
      }
      const map = await embedDifference(folder, reference, pictures[index]);
      cells.push(
        html`<td>${picture}<img class="thumb difference" src="${map}" alt="differences of ${alt} from full precision"><span class="muted">${fixed(metrics[index].psnr, 1)} dB</span></td>`,
      );
    }
    rows.push(html`<tr><th scope="row">${prompt || html`<em>no prompt</em>`}<br><span class="muted">seed ${seed}</span></th>${cells}</tr>
`);
  }
  const head = html`<thead><tr><th scope="col">case</th>${hasInput && html`<th scope="col">input</th>`}${shown.map(
    ({ label, description: text }) => html`<th scope="col" title="${text}">${label}</th>`,
  )}</tr></thead>`;
  const part = (list: readonly Html[], caption: string) =>
    html`<div class="scroll" tabindex="0" role="group" aria-label="pictures of ${task}"><table class="sheet"><caption>${caption}</caption>${head}<tbody>${list}</tbody></table></div>`;
  const more = rows.slice(openRows);
  return html`<article class="task" data-task="${task}"><h3>${task}</h3>
<p class="muted">${description} ${steps} steps, guidance ${guidance}.</p>
${compare(shown, cases.length)}
${part(rows.slice(0, openRows), `${task}: pictures by variant`)}
${more.length > 0 && html`<details><summary>${more.length} more pictures</summary>${part(more, `${task}: more pictures by variant`)}</details>`}
</article>`;
}

/** The slider; hidden until the page's script has filled it. */
function compare(variants: Evaluation["variants"], count: number): Html {
  const others = variants.filter(({ kind }) => kind !== "reference");
  return html`<div class="compare" hidden><div class="stage"><img class="under" alt=""><img class="over" alt=""><span class="line"></span><span class="tag left"></span><span class="tag right">full precision</span></div>
<div class="controls"><label>Slider <input type="range" class="at" min="0" max="100" value="50"></label>
<label>Picture <select class="row">${Array.from({ length: count }, (_, index) => html`<option value="${index}">${index + 1}</option>`)}</select></label>
<label>Against full precision <select class="variant">${others.map(({ name, label, kind }) => html`<option value="${name}"${kind === "candidate" && html` selected`}>${label}</option>`)}</select></label>
<p class="what muted" aria-live="polite"></p></div></div>`;
}
