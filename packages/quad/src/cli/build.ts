import { Command } from "commander";
import type { Profile } from "../records/profile.ts";
import { loadConfig } from "../settings/config.ts";
import { build } from "../stages/build.ts";
import { interruptSignal } from "./interrupt.ts";
import { printAdapters } from "./show.ts";
import { formatDuration, formatTable, type Terminal } from "./terminal.ts";

export function buildCommand(terminal: () => Terminal): Command {
  return new Command("build")
    .summary("make a bundle: one quantized graph that runs every adapter")
    .description(
      "Runs the stages expose, record, observe, profile, tune (where it is on), distill and compile over a configuration\n(quad.config.json or .ts). Stages whose inputs have not changed are skipped; an interrupted build continues where it stopped.",
    )
    .argument("<config>", "quad.config.json or quad.config.ts")
    .addHelpText("after", "\nExample:\n  quad build models/pocket/quad.config.json\n  quad show bundle")
    .action(async (path: string) => {
      const out = terminal();
      const config = await loadConfig(path);
      const started = performance.now();
      const { profile, adapters, base, stages } = await build(config, {
        signal: interruptSignal(),
        onProgress: (stage, done, total, detail) => out.progress(stage, done, total, detail),
        onStage: (name, { reused }) => out.print(`${reused ? "unchanged" : "done     "}  ${name}`),
        onWarning: (text) => out.warn(text),
      });
      out.endProgress();
      out.result({
        out: config.out,
        stages: Object.fromEntries(Object.entries(stages).map(([name, { key, reused }]) => [name, { key, reused }])),
        strategy: profile.strategy,
        scores: profile.scores,
        shared: profile.shared,
        ...(profile.tuned ? { tuned: profile.tuned } : {}),
        narrowLayers: profile.narrowLayers.length,
        base,
        adapters: Object.fromEntries(adapters.map(({ name, rank, fit }) => [name, { rank, fit }])),
      });
      out.print("");
      printProfile(out, profile);
      out.print("");
      printAdapters(out, adapters, base);
      out.print(`\nWrote ${config.out} in ${formatDuration(performance.now() - started)}`);
    });
}

/** The table that the anchor was chosen from, and the choice. */
export function printProfile(out: Terminal, profile: Profile): void {
  const number = (value: number | undefined) => (value === undefined ? "" : value.toFixed(1));
  out.print(
    formatTable([
      ["task", "QSS (own profile)", "SQNR own dB", "on anchor's dB", "on merged dB"],
      ...Object.entries(profile.scores).map(([task, { qss, sqnr }]) => [
        task === profile.strategy.anchor ? `${task} (anchor)` : task,
        qss.toExponential(2),
        number(sqnr),
        number(profile.shared.anchor?.[task]?.sqnr),
        number(profile.shared.unified?.[task]?.sqnr),
      ]),
    ]),
  );
  out.print(`\nProfile: ${profile.strategy.kind}; ${profile.strategy.reason}.`);
  const worst = (kind: string) => Math.min(...Object.values(profile.shared[kind] ?? {}).map(({ sqnr }) => sqnr));
  const other = profile.strategy.kind === "anchor" ? "unified" : "anchor";
  const gain = worst(other) - worst(profile.strategy.kind);
  if (gain > 1) {
    out.print(
      `Without distillation the ${other} profile would serve the worst task ${gain.toFixed(1)} dB better: policy.strategy "${other}".`,
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
