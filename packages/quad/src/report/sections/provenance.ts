import type { Evaluation } from "../../records/evaluation.ts";
import type { Profile } from "../../records/profile.ts";
import { type Html, html, table } from "../html.ts";

/** What was run, on what. */
export function provenanceSection(
  { candidate, reference, variants, tasks, machine, versions, created }: Evaluation,
  profile: Profile | null,
): Html {
  const facts: [string, string][] = [
    ["evaluated", candidate.path],
    ["against", reference.path],
    ["made", created],
    ["machine", `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGB} GB, ${machine.platform}`],
    ...Object.entries(versions).map(([name, version]) => [name, version] as [string, string]),
    ...(profile
      ? ([
          ["target", profile.placement],
          ["weights", `${profile.policy.weightBits} bits`],
          ["adapters", `${profile.policy.adapterBits} bits, rank ${profile.rank}`],
          ["8-bit layers", `${profile.narrowLayers.length}`],
          ["graph", profile.graph],
        ] as [string, string][])
      : []),
  ];
  const cases = tasks.flatMap(({ task, steps, guidance, cases: list }) =>
    list.map(({ prompt, negativePrompt, seed, width, height, input }) => [
      task,
      prompt,
      negativePrompt ?? "",
      seed,
      steps,
      guidance,
      `${width} × ${height}`,
      input ? "yes" : "",
    ]),
  );
  return html`<section id="run" aria-labelledby="run-title"><h2 id="run-title">What was run</h2>
<dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
<dl class="variants">${variants.map(({ label, description }) => html`<div><dt>${label}</dt><dd>${description}</dd></div>`)}</dl>
<details><summary>All cases with their seeds</summary>${table("Held-out cases; both sides start from the same noise", ["task", "prompt", "negative prompt", "seed", "steps", "guidance", "size", "input"], cases, "figures")}</details>
</section>`;
}
