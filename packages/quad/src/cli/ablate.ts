import { InputError } from "@quad-lora/base";
import { Command, InvalidArgumentError, Option } from "commander";
import { ablate, ablationTable, ablationVariants } from "../ablation/index.ts";
import { loadConfig } from "../settings/config.ts";
import { strictestTarget, type TargetName, targetNames } from "../targets/index.ts";
import { parseCount } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { formatDuration, formatTable, type Terminal } from "./terminal.ts";

interface Options {
  out: string;
  pictures: number;
  processes: number;
  placement: TargetName;
  only?: RegExp;
}

export function ablateCommand(terminal: () => Terminal): Command {
  return new Command("ablate")
    .summary("compare ways to quantize, end to end")
    .description(
      "Draws held-out pictures with every way to quantize, in simulation, and sets them against full precision with the same\nnoise: own, anchor and unified profiles, shares of 8-bit layers, with and without alignment, and what a fully 8-bit model\nsuffers from. Uses the calibration of quad build; an interrupted run continues where it stopped.",
    )
    .argument("<config>", "quad.config.json or quad.config.ts")
    .option("-o, --out <file>", "table to write (.json)", "ablation.json")
    .option("-n, --pictures <count>", "held-out pictures per task", parseCount, 32)
    .option("--processes <count>", "processes that measure, one thread each", parseCount, 2)
    .addOption(new Option("--placement <target>", "what is quantized").choices(targetNames).default(strictestTarget))
    .option("--only <pattern>", "variants whose names match this regular expression", parsePattern)
    .addHelpText("after", "\nExample:\n  quad ablate models/pocket/quad.config.json --pictures 4 --only unified")
    .action(async (path: string, { only, ...options }: Options) => {
      const out = terminal();
      const config = await loadConfig(path);
      const started = performance.now();
      const variants = ablationVariants().filter(({ name }) => !only || only.test(name));
      if (variants.length === 0) {
        throw new InputError({ what: "no variant has such a name", where: "--only", got: String(only) });
      }
      const ablation = await ablate(config, {
        ...options,
        variants,
        ...stageOptions(out),
        onStage: (name, { reused }) => out.print(`${reused ? "unchanged" : "done     "}  ${name}`),
        onRow: ({ name }, reused) => out.print(`${reused ? "unchanged" : "done     "}  ${name}`),
      });
      out.endProgress();
      out.result(ablation);
      out.print(
        `\nPSNR dB / SSIM against full precision, ${ablation.pictures} pictures a task; anchor: ${ablation.anchor}\n`,
      );
      out.print(formatTable(ablationTable(ablation)));
      out.print(`\nWrote ${options.out} in ${formatDuration(performance.now() - started)}`);
    });
}

function parsePattern(text: string): RegExp {
  try {
    return new RegExp(text, "i");
  } catch {
    throw new InvalidArgumentError("Expected a regular expression.");
  }
}
