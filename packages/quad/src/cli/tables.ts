import type { AdapterRecord, BundleQuality } from "@quad-lora/runtime";
import type { Profile } from "../records/profile.ts";
import { formatBytes } from "../report/format.ts";
import type { PlanState } from "../work/plan-state.ts";
import { formatTable, type Terminal } from "./terminal.ts";

/** Headings of the columns about shared profiles. */
const sharedNames: Record<string, string> = { anchor: "on anchor's dB", unified: "on merged dB", mixed: "on mixed dB" };

/** The table that the shared profile was chosen from, and the choice. */
export function printProfile(out: Terminal, profile: Profile): void {
  const kinds = Object.keys(profile.shared);
  const number = (value: number | undefined) => (value === undefined ? "" : value.toFixed(1));
  out.print(
    formatTable([
      ["task", "QSS (own profile)", "SQNR own dB", ...kinds.map((kind) => sharedNames[kind] ?? kind)],
      ...Object.entries(profile.scores).map(([task, { qss, sqnr }]) => [
        task === profile.strategy.anchor ? `${task} (anchor)` : task,
        qss.toExponential(2),
        number(sqnr),
        ...kinds.map((kind) => number(profile.shared[kind][task]?.sqnr)),
      ]),
    ]),
  );
  out.print(`\nProfile: ${profile.strategy.kind}; ${profile.strategy.reason}.`);
  const worst = (kind: string) => Math.min(...Object.values(profile.shared[kind] ?? {}).map(({ sqnr }) => sqnr));
  const best = kinds.reduce((chosen, kind) => (worst(kind) > worst(chosen) ? kind : chosen), profile.strategy.kind);
  const gain = worst(best) - worst(profile.strategy.kind);
  if (gain > 1) {
    out.print(
      `Before distillation the ${best} profile serves the worst task ${gain.toFixed(1)} dB better: policy.strategy "${best}".`,
    );
  }
  printTuned(out, profile);
}

/** What training the 8-bit ranges gained, where it was done. */
export function printTuned(out: Terminal, { tuned }: Profile): void {
  if (!tuned) return;
  const { steps, bestStep, tasks } = tuned;
  out.print(
    `\n8-bit ranges trained for ${steps} steps; ${bestStep > 0 ? `best at step ${bestStep}` : "none did better than calibration's"}:`,
  );
  out.print(
    formatTable([
      ["task", "before dB", "after dB"],
      ...Object.entries(tasks).map(([task, { sqnrBefore, sqnrAfter }]) => [
        task,
        sqnrBefore.toFixed(1),
        sqnrAfter.toFixed(1),
      ]),
    ]),
  );
}

/** How well the adapters of a bundle fit. */
export function printAdapters(out: Terminal, adapters: readonly AdapterRecord[], base?: BundleQuality): void {
  const decibels = (value: number | null) => (value === null ? "exact" : value.toFixed(1));
  const measured = (quality: BundleQuality | undefined) =>
    quality ? [quality.qss.toExponential(2), decibels(quality.sqnr)] : ["not measured", ""];
  out.print(
    formatTable([
      ["adapter", "rank", "size", "QSS", "SQNR dB", "factors dB", "error", "before alignment", "clipped"],
      ...(base ? [["base", "", "", ...measured(base), "", "", "", ""]] : []),
      ...adapters.map(({ name, rank, files, fit }) => [
        name,
        rank,
        formatBytes(files[`${name}.safetensors`]?.bytes ?? 0),
        ...measured(fit.measured),
        decibels(fit.productSqnr),
        fit.alignmentError.toFixed(4),
        fit.errorBeforeAlignment.toFixed(4),
        `${(100 * fit.clipped).toFixed(2)} %`,
      ]),
    ]),
  );
}

/** The steps of a plan, and how far it is. */
export function printPlan(out: Terminal, { steps, open }: PlanState): void {
  out.result({ steps, open });
  for (const { label, done, detail } of steps) {
    out.print(`${done ? "done " : "to do"}  ${label}${detail ? `, ${detail}` : ""}`);
  }
  for (const { after, what } of open) out.print(`open   ${what} (known after ${after})`);
}
