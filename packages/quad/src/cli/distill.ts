import { existsSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { Command, Option } from "commander";
import { bundleFiles } from "../bundle/bundle-folder.ts";
import { type DistillAdapterResult, distillSchema } from "../distill/index.ts";
import { loadConfig } from "../settings/config.ts";
import { distillBundle, distillConfigured } from "../stages/distill-configured.ts";
import { parseCount, parseNumber, parseSeed, withOptions } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { printAdapters } from "./tables.ts";
import { formatDuration, formatTable, type Terminal } from "./terminal.ts";

interface Options {
  profile?: string;
  config: string;
  out?: string;
  against?: string;
  adapter?: string[];
  dataset?: string;
  steps?: number;
  batch?: number;
  pictures?: number;
  learningRate?: number;
  seed?: number;
}

export function distillCommand(terminal: () => Terminal): Command {
  return new Command("distill")
    .summary("tune adapters to the shared profile")
    .description(
      "Trains each adapter's factors so that the quantized denoiser on the frozen profile predicts what full precision does.\n" +
        "Needs no data: the full-precision model draws the configuration's calibration prompts and pictures with further seeds.\n" +
        "In a bundle the adapters' codes are replaced, and no other file changes; from an exposed folder the factors go to --out.\n" +
        "Ctrl-C leaves a checkpoint, and a bundle as it was; the same command goes on from it.",
    )
    .argument("<folder>", "bundle, or folder written by quad expose")
    .requiredOption("-c, --config <file>", "quad.config.json or .ts: its tasks and its distill settings are used")
    .option("--profile <file>", "for an exposed folder: profile written by quad profile")
    .option("-o, --out <folder>", "for an exposed folder: where the distilled adapters go")
    .option(
      "--against <exposed>",
      "for a bundle: the exposed folder it was compiled from; default: of the configuration's build",
    )
    .option("-a, --adapter <names...>", "default: those that did not define the profile")
    .option("--dataset <folder>", "pictures and captions, as quad train takes them, in place of the teacher's own")
    .addOption(new Option("-n, --steps <count>", "training steps").argParser(parseCount))
    .addOption(new Option("--batch <count>", "calls of the denoiser per step").argParser(parseCount))
    .addOption(new Option("--pictures <count>", "pictures that the teacher draws").argParser(parseCount))
    .addOption(new Option("--learning-rate <rate>", "highest rate, in steps of an 8-bit grid").argParser(parseNumber))
    .addOption(new Option("-s, --seed <number>", "for pictures and order").argParser(parseSeed))
    .addHelpText(
      "after",
      "\nExamples:\n  quad distill bundle --config quad.config.json --adapter sketch --steps 400\n" +
        "  quad distill exposed --profile profile.json --config quad.config.json --adapter sketch --out distilled\n" +
        "  quad compile exposed --profile profile.json --adapters distilled --out bundle",
    )
    .action(
      async (
        folder: string,
        { profile, config: configFile, out, against, adapter: names, dataset, ...given }: Options,
      ) => {
        const term = terminal();
        const isBundle = existsSync(join(folder, bundleFiles.manifest));
        if (isBundle) {
          refuse(folder, "--out", out, "a bundle's adapters are replaced in place");
          refuse(folder, "--profile", profile, "a bundle has a profile of its own");
        } else {
          demand(folder, "--profile", profile);
          demand(folder, "--out", out);
          refuse(folder, "--against", against, "an exposed folder is the full-precision model itself");
        }
        const config = await loadConfig(configFile);
        const started = performance.now();
        const options = {
          config: { ...config, distill: withOptions(distillSchema, config.distill, given) },
          ...(names ? { names } : {}),
          ...(dataset !== undefined ? { dataset } : {}),
          ...stageOptions(term),
        };
        if (isBundle) {
          const given = against !== undefined ? { against } : {};
          const { distilled, records } = await distillBundle({ ...options, bundle: folder, ...given });
          term.endProgress();
          term.result({ bundle: folder, adapters: distilled.map(withoutCurve), records });
          printGains(term, distilled);
          printAdapters(term, records);
        } else {
          const results = await distillConfigured({ ...options, exposed: folder, profile: profile!, out: out! });
          term.endProgress();
          term.result({ out, adapters: results.map(withoutCurve) });
          printGains(term, results);
        }
        term.print(`Wrote ${isBundle ? folder : out} in ${formatDuration(performance.now() - started)}`);
      },
    );
}

function withoutCurve({ curve: _, ...result }: DistillAdapterResult) {
  return result;
}

function printGains(term: Terminal, results: readonly DistillAdapterResult[]): void {
  term.print(
    formatTable([
      ["adapter", "aligned dB", "distilled dB", "best step", "s/step"],
      ...results.map((result) => [
        result.adapter,
        result.sqnrBefore.toFixed(1),
        result.sqnrAfter.toFixed(1),
        String(result.bestStep),
        result.secondsPerStep.toFixed(2),
      ]),
    ]),
  );
  term.print("\ndB: signal to noise of the guided predictions on pictures kept out of training.");
}

function refuse(file: string, option: string, value: string | undefined, what: string): void {
  if (value !== undefined) throw new InputError({ what, file, got: `${option} ${value}`, fix: `Leave ${option} out.` });
}

function demand(file: string, option: string, value: string | undefined): void {
  if (value !== undefined) return;
  throw new InputError({
    what: `an exposed folder needs ${option}`,
    file,
    fix: `Give ${option}, or a bundle in place of the folder.`,
  });
}
