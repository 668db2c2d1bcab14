import { type Finding, limits, overview } from "../findings.ts";
import { type Html, html, prose } from "../html.ts";

const words = { good: "holds", fair: "differences", poor: "suffers" };

/** The answer in words: which task suffers, where, and what to do. */
export function summarySection(findings: readonly Finding[], notes: readonly string[]): Html {
  const { goodPsnr, goodSsim, poorPsnr, poorSsim, difference, clipped } = limits;
  return html`<section id="summary" aria-labelledby="summary-title"><h2 id="summary-title">In short</h2>
<p class="lead">${prose(overview(findings))}</p>
<ul class="cards">${findings.map(
    ({ task, level, verdict, causes, advice }) => html`
<li class="card ${level}"><h3><span class="badge">${words[level]}</span> ${task}</h3>
<p>${verdict}.</p>
${causes.map((cause) => html`<p>${prose(cause)}</p>`)}
<p class="advice"><strong>What to do:</strong> ${prose(advice.join(" "))}</p></li>`,
  )}</ul>
${
  notes.length > 0 &&
  html`<details${notes.length <= 3 ? html` open` : null}><summary>To know when reading (${notes.length})</summary><ul>${notes.map((note) => html`<li>${prose(note)}</li>`)}</ul></details>`
}
<details><summary>How these sentences are made</summary>
<p>A task holds from PSNR ${goodPsnr} dB and SSIM ${goodSsim} against the full-precision pictures of the same noise; it suffers below
${poorPsnr} dB or ${poorSsim}. Sharing counts as a cause where a profile of its own would be ${difference} dB better. The denoiser's error is
taken apart by switching causes on one by one in simulation: rounded weights, the adapter's factors, values between layers, and the inputs of each
layer alone; percentages are shares of the sum of these noise powers. A layer's range counts as too narrow where it clips more
than ${100 * clipped} % of the task's values; else the layer has too few bits. Advice follows the largest cause.</p></details>
</section>`;
}
