import { rm } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad/onnx";
import { Command, Option } from "commander";
import { loadCases } from "../build/build.ts";
import { type BuildConfig, loadConfig } from "../build/config.ts";
import { adaptersToDistill, describe } from "../build/distill-stages.ts";
import { runStage } from "../build/stage.ts";
import { distillAdapters, distillSchema, recordDataset, recordTeacher } from "../distill/index.ts";
import { HashCache } from "../files/hash-tree.ts";
import { graphIdentity } from "../profile/exposed-adapters.ts";
import { readProfile } from "../profile/profile.ts";
import { parseCount, parseNumber, parseSeed } from "./arguments.ts";
import { interruptSignal } from "./interrupt.ts";
import { formatDuration, formatTable, type Terminal } from "./terminal.ts";

interface Options {
  profile: string;
  config: string;
  out: string;
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
        "Ctrl-C leaves a checkpoint; the same command goes on from it.",
    )
    .argument("<exposed>", "folder written by quad expose")
    .requiredOption("--profile <file>", "profile written by quad profile")
    .requiredOption("-c, --config <file>", "quad.config.json or .ts: its tasks and its distill settings are used")
    .requiredOption("-o, --out <folder>", "folder for the distilled adapters")
    .option("-a, --adapter <names...>", "default: those that did not define the profile")
    .option("--dataset <folder>", "pictures and captions, as quad train takes them, in place of the teacher's own")
    .addOption(new Option("-n, --steps <count>", "training steps").argParser(parseCount))
    .addOption(new Option("--batch <count>", "calls of the denoiser per step").argParser(parseCount))
    .addOption(new Option("--pictures <count>", "pictures that the teacher draws").argParser(parseCount))
    .addOption(new Option("--learning-rate <rate>", "highest rate, in steps of an 8-bit grid").argParser(parseNumber))
    .addOption(new Option("-s, --seed <number>", "for pictures and order").argParser(parseSeed))
    .addHelpText(
      "after",
      "\nExample:\n  quad distill exposed --profile profile.json --config quad.config.json --adapter sketch --out distilled\n  quad compile exposed --profile profile.json --adapters distilled --out bundle",
    )
    .action(
      async (
        exposed: string,
        { profile: profileFile, config: configFile, out, adapter, dataset, ...given }: Options,
      ) => {
        const term = terminal();
        const signal = interruptSignal();
        const config = await loadConfig(configFile);
        const settings = distillSchema.parse({ ...config.distill, ...given });
        const profile = await readProfile(profileFile);
        const names = adapter ?? adaptersToDistill({ ...config, distill: settings }, profile);
        for (const name of names) checkName(name, config, configFile);
        if (dataset !== undefined && names.length !== 1) {
          throw new InputError({
            what: "a folder of pictures is for one adapter",
            got: names.join(", ") || "none",
            fix: "Name it with --adapter.",
          });
        }
        const started = performance.now();
        const work = join(out, ".work");
        const common = {
          signal,
          onProgress: (stage: string, done: number, total: number) => term.progress(stage, done, total),
        };
        const hashes = await HashCache.open(join(work, "hashes.json"));
        const graph = await graphIdentity(exposed, profile.component);
        const jobs = [];
        for (const name of names) {
          const task = config.tasks[name];
          const files = task.calibration
            .flatMap(({ image, mask }) => [image, mask])
            .filter((path) => path !== undefined);
          const { pictures, seed } = settings;
          const factors = await hashes.hash(join(exposed, "adapters", `${name}.safetensors`));
          const drawn = await Promise.all(files.map((path) => hashes.hash(path)));
          const data = dataset === undefined ? null : await hashes.hash(dataset);
          const inputs = { graph, name, task, pictures, seed, factors, drawn, data };
          const { folder } = await runStage(work, `teacher-${name}`, inputs, async (teacher) => {
            const file = join(teacher, "trajectory.safetensors");
            if (dataset !== undefined)
              await recordDataset(config.model, exposed, name, dataset, file, settings, common);
            else await recordTeacher(exposed, name, await loadCases(exposed, task), file, settings, common);
          });
          const trajectory = join(folder, "trajectory.safetensors");
          jobs.push({
            ...{ exposed, profile: profileFile, adapter: name, settings, trajectory, out },
            checkpoints: join(work, "checkpoints"),
          });
        }
        await hashes.save();
        const results = await distillAdapters(jobs, {
          signal,
          onProgress: (progress) => term.progress("distilling", progress.done, progress.total, describe(progress)),
        });
        await rm(work, { recursive: true, force: true });
        term.endProgress();
        term.result({ out, adapters: results.map(({ curve: _, ...result }) => result) });
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
        term.print(`Wrote ${out} in ${formatDuration(performance.now() - started)}`);
      },
    );
}

function checkName(name: string, config: BuildConfig, file: string): void {
  if (name in config.tasks && name in config.adapters) return;
  throw new InputError({
    what: `there is no adapter "${name}"`,
    file,
    where: "adapters",
    expected: Object.keys(config.adapters).join(", "),
  });
}
