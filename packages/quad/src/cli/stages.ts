import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { Command } from "commander";
import { observeTasks } from "../calibrate/calibrate.ts";
import { LazyPipeline } from "../model/open-folder.ts";
import { buildProfile } from "../profile/build-profile.ts";
import { importEncodings } from "../profile/import-encodings.ts";
import { writeProfile } from "../records/profile.ts";
import { loadConfig } from "../settings/config.ts";
import { recordConfigured } from "../stages/calibrate.ts";
import { stageOptions } from "./interrupt.ts";
import { printProfile } from "./tables.ts";
import type { Terminal } from "./terminal.ts";

export function calibrateCommand(terminal: () => Terminal): Command {
  return new Command("calibrate")
    .summary("run the calibration pictures in full precision and record what every value needs")
    .description(
      "Draws the calibration cases of a configuration with an exposed folder in full precision. Writes one trajectory per task\n(what the denoiser saw and said) and observations.safetensors (ranges and histograms of every value).",
    )
    .argument("<exposed>", "folder written by quad expose")
    .requiredOption("-c, --config <file>", "quad.config.json or .ts: its tasks are used")
    .requiredOption("-o, --out <folder>", "folder to write")
    .action(async (exposed: string, options: { config: string; out: string }) => {
      const out = terminal();
      const config = await loadConfig(options.config);
      const common = {
        ...stageOptions(out),
      };
      const files: string[] = [];
      const pipeline = new LazyPipeline(exposed);
      try {
        for (const [task, settings] of Object.entries(config.tasks)) {
          const file = join(options.out, `${task}.trajectory.safetensors`);
          await recordConfigured(await pipeline.open(), task, settings, file, common);
          files.push(file);
        }
      } finally {
        await pipeline.dispose();
      }
      const observations = join(options.out, "observations.safetensors");
      const { names } = await observeTasks(exposed, files, observations, common);
      out.endProgress();
      out.result({ out: options.out, tasks: Object.keys(config.tasks), values: names.length });
      out.print(`Observed ${names.length} values in ${files.length} tasks. Wrote ${options.out}`);
    });
}

/**
 * Paths of the trajectories in a folder written by `quad calibrate`, by task name.
 * @throws InputError where there are none
 */
export async function trajectoryFiles(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  const trajectories = names.filter((name) => name.endsWith(".trajectory.safetensors")).sort();
  if (trajectories.length > 0) return trajectories.map((name) => join(folder, name));
  throw new InputError({
    what: "there are no trajectories",
    file: folder,
    expected: "a folder written by quad calibrate",
  });
}

interface ProfileCommandOptions {
  calibration: string;
  config: string;
  out: string;
  encodings?: string;
}

export function profileCommand(terminal: () => Terminal): Command {
  return new Command("profile")
    .summary("choose the encodings that all adapters share")
    .description(
      "Scores every task on its own profile (QSS), picks the anchor or merges all, and writes the shared quantization profile.",
    )
    .argument("<exposed>", "folder written by quad expose")
    .requiredOption("--calibration <folder>", "folder written by quad calibrate")
    .requiredOption("-c, --config <file>", "quad.config.json or .ts: its policy and target are used")
    .requiredOption("-o, --out <file>", "profile to write (.json)")
    .option("--encodings <file>", "AIMET encodings to use where they name an activation or an adapter input")
    .action(async (exposed: string, options: ProfileCommandOptions) => {
      const out = terminal();
      const config = await loadConfig(options.config);
      const profile = await buildProfile({
        exposed,
        trajectories: await trajectoryFiles(options.calibration),
        observations: join(options.calibration, "observations.safetensors"),
        out: options.out,
        policy: config.policy,
        placement: config.target,
        ...stageOptions(out),
      });
      const imported = options.encodings ? await importEncodings(exposed, profile, options.encodings) : undefined;
      if (imported) await writeProfile(options.out, imported.profile);
      out.endProgress();
      const { strategy, scores, shared } = profile;
      out.result({
        ...{ out: options.out, strategy, scores, shared },
        ...(imported ? { imported: { taken: imported.taken, skipped: imported.skipped } } : {}),
      });
      printProfile(out, profile);
      if (imported) {
        const unused =
          imported.skipped.length > 0 ? `, ${imported.skipped.length} entries not used (--json lists them)` : "";
        out.print(`\n${imported.taken} encodings from ${options.encodings}${unused}`);
      }
      out.print(`\nWrote ${options.out}`);
    });
}
