import { Command, Option } from "commander";
import { loadConfig } from "../settings/config.ts";
import { build, planOfBuild } from "../stages/build.ts";
import { type ExecutorName, executors } from "../work/executors/index.ts";
import { stageOptions } from "./interrupt.ts";
import { printAdapters, printPlan, printProfile } from "./tables.ts";
import { formatDuration, type Terminal } from "./terminal.ts";

export function buildCommand(terminal: () => Terminal): Command {
  return new Command("build")
    .summary("make a bundle: one quantized graph that runs every adapter")
    .description(
      "Runs the stages expose, record, observe, profile, tune (where it is on), distill and compile over a configuration\n(quad.config.json or .ts). Stages whose inputs have not changed are skipped; an interrupted build continues where it stopped.",
    )
    .argument("<config>", "quad.config.json or quad.config.ts")
    .addOption(
      new Option(
        "--executor <name>",
        "where steps run; default: side by side in child processes, as memory allows",
      ).choices(Object.keys(executors)),
    )
    .option("--plan", "only say which steps are done, and which a build would do")
    .addHelpText("after", "\nExample:\n  quad build models/pocket/quad.config.json\n  quad show bundle")
    .action(async (path: string, options: { plan?: boolean; executor?: ExecutorName }) => {
      const out = terminal();
      const config = await loadConfig(path);
      if (options.plan) return printPlan(out, await planOfBuild(config));
      const started = performance.now();
      const { profile, adapters, base, stages } = await build(config, {
        ...stageOptions(out),
        executor: options.executor,
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
