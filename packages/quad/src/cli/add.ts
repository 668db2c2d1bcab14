import { InputError } from "@quad-lora/base";
import { Command } from "commander";
import { type AddOptions, addToBundle } from "../bundle/add.ts";
import { loadConfig } from "../settings/config.ts";
import { type DistillSettings, distillSchema } from "../settings/distill.ts";
import { loadCases } from "../tasks/cases.ts";
import { parseCount, parseNumber } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { printAdapters } from "./tables.ts";
import type { Terminal } from "./terminal.ts";

interface Options {
  task: string;
  against?: string;
  config?: string;
  prompt: string[];
  image: string[];
  mask: string[];
  steps?: number;
  guidance?: number;
  partial?: boolean;
  distill?: boolean;
}

const collect = (text: string, previous: string[]) => [...previous, text];

export function addCommand(terminal: () => Terminal): Command {
  return new Command("add")
    .summary("encode a new adapter for a finished bundle")
    .description(
      "Encodes a LoRA against the bundle's frozen graph and profile and says how well it fits. Writes adapters/TASK.* and changes\nnothing else in the bundle. With --against a full-precision model the fit is measured by running both.",
    )
    .argument("<bundle>", "folder written by quad build or quad compile")
    .argument("<adapter>", "LoRA file or PEFT folder")
    .requiredOption("-t, --task <name>", "name of the new task")
    .option("--against <model>", "full-precision model folder, plain or exposed, to measure QSS and SQNR with")
    .option("-c, --config <file>", "quad.config.json or .ts: the calibration cases of this task are drawn")
    .option(
      "-p, --prompt <text>",
      "prompt to draw for the measurement; repeatable; the first is the task's own",
      collect,
      [],
    )
    .option("-i, --image <file>", "picture that goes with the prompts, in turn; repeatable", collect, [])
    .option("-m, --mask <file>", "mask that goes with the pictures, in turn; repeatable", collect, [])
    .option("-n, --steps <count>", "the task's denoising steps; default: the base's", parseCount)
    .option("-g, --guidance <scale>", "the task's guidance; default: the base's", parseNumber)
    .option(
      "--distill",
      "tune the adapter to the bundle's profile; --against is the exposed folder it was compiled from",
    )
    .option("--partial", "take an adapter that has layers without a slot in the bundle")
    .addHelpText(
      "after",
      '\nExample:\n  quad add bundle new.safetensors --task new --against models/pocket --prompt "cat face"',
    )
    .action(async (bundle: string, adapter: string, options: Options) => {
      const out = terminal();
      const { task: name, steps, guidance } = options;
      const record = await addToBundle({
        bundle,
        adapter,
        name,
        task: {
          ...(steps !== undefined ? { steps } : {}),
          ...(guidance !== undefined ? { guidance } : {}),
          ...(options.prompt.length > 0 ? { prompt: options.prompt[0] } : {}),
          ...inputsOf(options),
        },
        ...(options.against !== undefined ? { against: options.against } : {}),
        ...(await casesOf(bundle, options)),
        ...(options.partial ? { partial: true } : {}),
        ...(options.distill ? { distill: await distillSettings(options.config) } : {}),
        ...stageOptions(out),
        onWarning: out.warn,
      });
      out.endProgress();
      if (record.withoutSlot.length > 0) {
        out.warn(`${record.withoutSlot.length} keys of ${adapter} have no slot in this bundle and no effect`);
      }
      out.result(record);
      printAdapters(out, [record]);
      if (!record.fit.measured) {
        out.print(
          "\nThis is the fit of the factors alone. With --against MODEL the bundle is run beside the full-precision model.",
        );
      }
      out.print(`\nAdded ${name} to ${bundle}: quad run ${bundle} --task ${name}`);
    });
}

async function distillSettings(config: string | undefined): Promise<DistillSettings> {
  return config === undefined ? distillSchema.parse({}) : (await loadConfig(config)).distill;
}

/** What calls of the task have to bring. */
function inputsOf({ image, mask }: Options): Pick<NonNullable<AddOptions["task"]>, "inputs"> {
  const inputs = [...(image.length > 0 ? ["image" as const] : []), ...(mask.length > 0 ? ["mask" as const] : [])];
  return inputs.length > 0 ? { inputs } : {};
}

async function casesOf(bundle: string, options: Options): Promise<Pick<AddOptions, "cases">> {
  const { config, prompt, image, mask, task } = options;
  const given = Math.max(prompt.length, image.length);
  if (config !== undefined) {
    if (given > 0) throw new InputError({ what: "--config and --prompt or --image exclude each other" });
    const { tasks } = await loadConfig(config);
    const settings = tasks[task];
    if (!settings) {
      throw new InputError({
        what: `there is no task "${task}"`,
        file: config,
        expected: `one of ${Object.keys(tasks).join(", ")}`,
      });
    }
    return { cases: await loadCases(bundle, settings) };
  }
  if (given === 0) return {};
  const pick = (list: string[], index: number) => (list.length > 0 ? list[index % list.length] : undefined);
  const calibration = Array.from({ length: Math.max(given, 4) }, (_, seed) => ({
    prompt: pick(prompt, seed),
    image: pick(image, seed),
    mask: pick(mask, seed),
    seed,
  }));
  return { cases: await loadCases(bundle, { calibration }) };
}
