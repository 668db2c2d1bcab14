import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { Command, Option } from "commander";
import { setAsideFolder } from "../bundle/added-adapters.ts";
import { compileBundle } from "../compile/compile-bundle.ts";
import { readProfile } from "../records/profile.ts";
import { defaultTarget, type TargetName, targetNames } from "../targets/index.ts";
import { parseCount } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { printAdapters } from "./tables.ts";
import type { Terminal } from "./terminal.ts";

interface Options {
  profile: string;
  out: string;
  target?: TargetName;
  rank?: number;
  adapters?: string;
  calibration?: string;
}

export function compileCommand(terminal: () => Terminal): Command {
  return new Command("compile")
    .summary("write a bundle from an exposed folder and a profile")
    .description(
      "Quantizes the exposed graph with the profile's encodings, encodes every adapter on its scales, and writes both with a\nmanifest of hashes. With --calibration the bundle is run on what quad calibrate recorded, to say how well it fits.",
    )
    .argument("<exposed>", "folder written by quad expose")
    .requiredOption("-p, --profile <file>", "profile written by quad profile")
    .requiredOption("-o, --out <folder>", "bundle to write; a bundle there is replaced")
    .addOption(
      new Option("--target <kind>", "what the profile was made for; default: the profile's").choices(targetNames),
    )
    .option("--rank <rank>", "rank that a graph of fixed rank takes; default: the profile's", parseCount)
    .option("--adapters <folder>", "distilled factors in place of the exposed folder's of the same names")
    .option("--calibration <folder>", "folder written by quad calibrate")
    .addHelpText(
      "after",
      `\nExample:\n  quad compile exposed --profile profile.json --out bundle --target ${defaultTarget}`,
    )
    .action(async (exposed: string, options: Options) => {
      const out = terminal();
      const suffix = ".trajectory.safetensors";
      const { calibration } = options;
      const names = calibration ? (await readdir(calibration)).filter((name) => name.endsWith(suffix)).sort() : [];
      const result = await compileBundle({
        exposed,
        profile: options.profile,
        out: options.out,
        target: options.target ?? (await readProfile(options.profile)).placement,
        ...(options.rank ? { rank: options.rank } : {}),
        adapters: options.adapters ? [options.adapters] : [],
        trajectories: names.map((name) => join(calibration!, name)),
        ...stageOptions(out),
      });
      out.endProgress();
      if (result.lost.length > 0) {
        out.warn(
          `${result.lost.join(", ")} had been added for the graph or profile before: run quad add again (their files are in ${setAsideFolder(options.out)})`,
        );
      }
      out.result(result);
      printAdapters(out, result.adapters, result.manifest.base);
      out.print(`\nWrote ${options.out}`);
    });
}
