import { Command, Option } from "commander";
import { loadConfig } from "../settings/config.ts";
import { tuneProfile, tuneSchema } from "../tune/index.ts";
import { parseCount, parseNumber, parseSeed, withOptions } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { trajectoryFiles } from "./stages.ts";
import { printTuned } from "./tables.ts";
import { formatDuration, type Terminal } from "./terminal.ts";

interface Options {
  profile: string;
  calibration: string;
  config: string;
  out: string;
  steps?: number;
  batch?: number;
  learningRate?: number;
  seed?: number;
}

/** For configurations that leave the stage of `quad build` off. */
const defaultSteps = 150;

export function tuneCommand(terminal: () => Terminal): Command {
  return new Command("tune")
    .summary("train the 8-bit ranges of the shared profile")
    .description(
      "Trains the scales of a profile's 8-bit activations over the calibration calls of all tasks, so that the quantized denoiser\n" +
        "predicts what full precision does. Adapters and weights stay as they are; the best scales on pictures kept out are written.\n" +
        "Ctrl-C leaves a checkpoint; the same command goes on from it.",
    )
    .argument("<exposed>", "folder written by quad expose")
    .requiredOption("--profile <file>", "profile written by quad profile")
    .requiredOption("--calibration <folder>", "folder written by quad calibrate")
    .requiredOption("-c, --config <file>", "quad.config.json or .ts: its tune settings are used")
    .requiredOption("-o, --out <file>", "profile to write (.json)")
    .addOption(
      new Option(
        "-n, --steps <count>",
        `training steps; default: the configuration's, or ${defaultSteps} where it has none`,
      ).argParser(parseCount),
    )
    .addOption(new Option("--batch <count>", "calls of the denoiser per step").argParser(parseCount))
    .addOption(new Option("--learning-rate <rate>", "highest rate, in logarithms of a scale").argParser(parseNumber))
    .addOption(new Option("-s, --seed <number>", "for the order of calls").argParser(parseSeed))
    .addHelpText(
      "after",
      "\nExample:\n  quad tune exposed --profile profile.json --calibration calibration --config quad.config.json --out tuned.json",
    )
    .action(async (exposed: string, { profile, calibration, config: configFile, out, ...given }: Options) => {
      const term = terminal();
      const { tune } = await loadConfig(configFile);
      const settings = withOptions(tuneSchema, { ...tune, steps: tune.steps || defaultSteps }, given);
      const started = performance.now();
      const {
        curve: _,
        profile: tuned,
        ...result
      } = await tuneProfile({
        ...{ exposed, profile, out, settings },
        trajectories: await trajectoryFiles(calibration),
        ...stageOptions(term),
      });
      term.endProgress();
      term.result({ ...result, tuned: tuned.tuned });
      if (result.resumedFrom > 0) term.print(`Went on from step ${result.resumedFrom}.`);
      printTuned(term, tuned);
      term.print(
        `\n${result.parameters} scales, ${result.secondsPerStep.toFixed(2)} s per step. Wrote ${out} in ${formatDuration(performance.now() - started)}`,
      );
    });
}
