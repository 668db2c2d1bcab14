import { dirname } from "node:path";
import { readEvaluation } from "../records/evaluation.ts";
import { readProfile } from "../records/profile.ts";
import { findAll } from "./findings.ts";
import type { Html, Section } from "./html.ts";
import { readInputs } from "./inputs.ts";
import type { ReportOptions } from "./options.ts";
import { page } from "./page.ts";
import { restartPlots } from "./plots.ts";
import { ablationSection } from "./sections/ablation.ts";
import { benchmarksSection, storageSection } from "./sections/costs.ts";
import { curvesSection } from "./sections/curves.ts";
import { provenanceSection } from "./sections/provenance.ts";
import { qualitySection } from "./sections/quality.ts";
import { rangesSection } from "./sections/ranges.ts";
import { layersSection, scoresSection } from "./sections/sensitivity.ts";
import { sheetsSection } from "./sections/sheets.ts";
import { summarySection } from "./sections/summary.ts";

/** The report as one document. */
export async function renderReport(evaluationFile: string, options: Omit<ReportOptions, "out">): Promise<Html> {
  const evaluation = await readEvaluation(evaluationFile);
  const profile = options.profile ? await readProfile(options.profile) : null;
  const inputs = await readInputs(options.include ?? []);
  const trained = new Set(inputs.curves.map(({ name }) => name));
  const findings = findAll(evaluation, profile, trained);
  restartPlots();
  const missing: string[] = [];
  const sections: Section[] = [];
  const add = (section: Section | null, hint: string) => {
    if (section) sections.push(section);
    else missing.push(hint);
  };
  add(qualitySection(evaluation), "");
  add(await sheetsSection(evaluation, trained, dirname(evaluationFile)), "");
  add(
    profile && scoresSection(profile),
    "Sensitivity scores and the anchor: give the bundle's profile.json with --profile.",
  );
  add(
    layersSection(evaluation, profile),
    "Where the error comes from: run quad eval on a bundle, without --no-simulate.",
  );
  add(
    rangesSection(evaluation),
    "Ranges and clipping: run quad eval with --observations, a file of quad calibrate or quad build.",
  );
  add(curvesSection(inputs.curves), "Distillation curves: give the curve files with --include.");
  add(
    ablationSection(evaluation.ablation, inputs.ablations),
    "Share of 8-bit layers: run quad eval with --shares 0,40,80,100, or give an ablation file with --include.",
  );
  add(storageSection(evaluation), "Storage: needs a folder with adapters.");
  add(
    benchmarksSection(inputs.benchmarks),
    "Latency and memory: npm run bench, then --include benchmarks/results/latest.json.",
  );
  return page({
    title: `Quad: ${evaluation.candidate.path}`,
    subtitle: `against ${evaluation.reference.path}, ${evaluation.created.slice(0, 10)}`,
    summary: summarySection(findings, evaluation.notes),
    sections,
    missing,
    provenance: provenanceSection(evaluation, profile),
  });
}
