/** Markup that needs no more escaping. */
export class Html {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }

  toString(): string {
    return this.text;
  }
}

export type HtmlPart = Html | string | number | null | undefined | false | readonly HtmlPart[];

/** Markup with everything that is put in escaped, except other markup; lists are joined, null and false are left out. */
export function html(strings: TemplateStringsArray, ...parts: readonly HtmlPart[]): Html {
  return new Html(strings.reduce((text, piece, index) => `${text}${markup(parts[index - 1])}${piece}`));
}

function markup(part: HtmlPart): string {
  if (part === null || part === undefined || part === false) return "";
  if (part instanceof Html) return part.text;
  if (Array.isArray(part)) return part.map(markup).join("");
  return escapeHtml(String(part));
}

/** Safe in text and in quoted attributes. */
export function escapeHtml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");
}

/** A table for figures: the first column holds the rows' headings. */
export function table(
  caption: HtmlPart,
  headings: readonly HtmlPart[],
  rows: readonly (readonly HtmlPart[])[],
  className = "",
): Html {
  return html`<div class="scroll" tabindex="0" role="group" aria-label="table"><table class="${className}">
<caption>${caption}</caption>
<thead><tr>${headings.map((heading) => html`<th scope="col">${heading}</th>`)}</tr></thead>
<tbody>${rows.map(
    ([first, ...rest]) =>
      html`<tr><th scope="row">${first}</th>${rest.map((cell) => html`<td>${cell}</td>`)}</tr>
`,
  )}</tbody></table></div>`;
}

/** Text in which `names` between backticks are code; long dotted names may break after their dots. */
export function prose(text: string): Html {
  const name = (code: string) =>
    code.split(/(?<=\w)\.(?=\w)/).map((piece, index) => (index === 0 ? html`${piece}` : html`.<wbr>${piece}`));
  return html`${text.split("`").map((piece, index) => (index % 2 === 1 ? html`<code>${name(piece)}</code>` : piece))}`;
}

/** A part of the report; left out where it has nothing to show. */
export interface Section {
  id: string;
  title: string;
  /** For the list of parts at the top. */
  short: string;
  body: Html;
}
