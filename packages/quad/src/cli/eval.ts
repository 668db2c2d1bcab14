import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import { Command, InvalidArgumentError } from "commander";
import { evaluate } from "../evaluate/evaluate.ts";
import type { EvaluateOptions } from "../evaluate/options.ts";
import { planOfEvaluation } from "../evaluate/plan.ts";
import type { Evaluation } from "../records/evaluation.ts";
import { writeReport } from "../report/report.ts";
import { loadConfig } from "../settings/config.ts";
import { withoutUndefined } from "../settings/without-undefined.ts";
import { collectPairs, parseCount, parseNumber } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { printPlan } from "./tables.ts";
import { formatDuration, formatTable, type Terminal } from "./terminal.ts";

interface Options {
  against: string;
  config?: string;
  adapter: Record<string, string>;
  task?: string[];
  pictures?: number;
  out?: string;
  report?: string;
  profile?: string;
  observations?: string;
  simulate: boolean;
  shares?: number[];
  layerCalls?: number;
  include?: string[];
  lpips?: string;
  inception?: string;
  inceptionRange?: [number, number];
  clipImage?: string;
  clipText?: string;
  clipTokenizer?: string;
  plan?: boolean;
}

export function evalCommand(terminal: () => Terminal): Command {
  return new Command("eval")
    .summary("compare a bundle with the full-precision model, in figures and pictures")
    .description(
      "Draws held-out cases with the bundle and with the full-precision model from the same noise and compares them. With the\nbundle's profile and the calibration's observations it also simulates alternatives (without training, own profiles, all\n8-bit) and measures what each layer costs each task. A second run draws only what has changed; Ctrl-C loses one picture.",
    )
    .argument("<folder>", "bundle, or exposed folder")
    .requiredOption("--against <folder>", "full-precision model folder, or an exposed folder")
    .option("-c, --config <file>", "configuration with the cases; default: quad.config.json or .ts in --against")
    .option("-a, --adapter <name=path>", "original LoRA file, where the configuration has none", collectPairs, {})
    .option("-t, --task <name>", "only this task; repeatable", collect)
    .option("-n, --pictures <count>", "pictures per task; default: one per evaluation case", parseCount)
    .option("-o, --out <folder>", "folder for evaluation.json and pictures; default: evaluation, beside the report")
    .option("-r, --report <file>", "also write the report: one HTML file")
    .option("--profile <file>", "profile to simulate; default: the bundle's")
    .option("--observations <file>", "observations of calibration; default: in the configuration's work folder")
    .option("--no-simulate", "only draw and compare")
    .option("--shares <list>", "ablation: shares of 8-bit layers in percent, for example 0,40,80,100", parseShares)
    .option("--layer-calls <count>", "denoiser calls per task to measure layers on; 0: none", parseWhole)
    .option("--include <path>", "for the report: curve, benchmark or ablation JSON, or a folder of them", collect)
    .option("--lpips <file>", "LPIPS as ONNX: two inputs [1,3,H,W] in -1..1, one distance")
    .option("--inception <file>", "features for FID as ONNX: [N,3,S,S] -> [N,dim]")
    .option("--inception-range <low,high>", "what the Inception network's inputs span; default: -1,1", parseRange)
    .option("--clip-image <file>", "CLIP's image encoder with projection as ONNX")
    .option("--clip-text <file>", "CLIP's text encoder with projection as ONNX, its tokenizer beside it")
    .option("--clip-tokenizer <folder>", "folder with CLIP's tokenizer.json")
    .option("--plan", "only say what is drawn and measured already, and what an evaluation would do")
    .addHelpText("after", "\nExample:\n  quad eval bundle --against models/pocket --report report.html")
    .action(async (folder: string, options: Options) => {
      const out = terminal();
      const started = performance.now();
      const configPath = findConfig(options);
      const config = await loadConfig(configPath);
      const target = options.out ?? join(options.report ? dirname(options.report) : ".", "evaluation");
      const { lpips, inception, inceptionRange, clipImage, clipText, clipTokenizer } = options;
      const settings: EvaluateOptions = {
        against: options.against,
        config,
        out: target,
        pictures: options.pictures,
        tasks: options.task,
        adapters: options.adapter,
        profile: options.profile,
        observations: options.observations,
        ...(options.simulate ? {} : { simulate: false }),
        shares: options.shares,
        layerCalls: options.layerCalls,
        networks: withoutUndefined({ lpips, inception, inceptionRange, clipImage, clipText, clipTokenizer }),
      };
      if (options.plan) return printPlan(out, await planOfEvaluation(folder, settings));
      const evaluation = await evaluate(folder, { ...settings, ...stageOptions(out) });
      out.endProgress();
      const file = join(target, "evaluation.json");
      if (options.report) {
        const profile = options.profile ?? join(folder, "profile.json");
        await writeReport(file, {
          out: options.report,
          profile: existsSync(profile) ? profile : undefined,
          include: [...(options.include ?? []), ...(existsSync(config.work!) ? [config.work!] : [])],
        });
      }
      out.result({ out: file, report: options.report ?? null, ...resultOf(evaluation) });
      printEvaluation(out, evaluation);
      const wrote = options.report ? `${file} and ${options.report}` : file;
      out.print(`\nWrote ${wrote} in ${formatDuration(performance.now() - started)}`);
    });
}

export function reportCommand(terminal: () => Terminal): Command {
  return new Command("report")
    .summary("write report.html from an evaluation")
    .description(
      "Writes one self-contained HTML file from what quad eval measured. Nothing is drawn or measured again.",
    )
    .argument("<evaluation>", "folder written by quad eval, or its evaluation.json")
    .requiredOption("-o, --out <file>", "HTML file to write")
    .option("--profile <file>", "the bundle's profile.json")
    .option("--include <path>", "curve, benchmark or ablation JSON, or a folder of them; repeatable", collect)
    .addHelpText("after", "\nExample:\n  quad report evaluation --profile bundle/profile.json --out report.html")
    .action(async (path: string, options: { out: string; profile?: string; include?: string[] }) => {
      const out = terminal();
      const file = basename(path).endsWith(".json") ? path : join(path, "evaluation.json");
      await writeReport(file, { out: options.out, profile: options.profile, include: options.include ?? [] });
      out.result({ out: options.out });
      out.print(`Wrote ${options.out}`);
    });
}

function findConfig({ config, against }: Options): string {
  if (config) return config;
  const found = ["quad.config.json", "quad.config.ts"].map((name) => join(against, name)).find(existsSync);
  if (found) return found;
  throw new InputError({
    what: "there are no cases to draw",
    file: against,
    expected: "quad.config.json or quad.config.ts in the folder",
    fix: "Give --config with tasks.NAME.evaluation.",
  });
}

/** What `--json` prints besides the paths: the means by task and variant. */
function resultOf({ tasks, notes }: Evaluation) {
  const results = tasks.map(({ task, results }) => [
    task,
    Object.fromEntries(
      Object.entries(results).flatMap(([variant, { summary }]) => (summary ? [[variant, summary] as const] : [])),
    ),
  ]);
  return { tasks: Object.fromEntries(results), notes };
}

function printEvaluation(out: Terminal, { tasks, variants, notes }: Evaluation): void {
  const rows = tasks.flatMap(({ task, results }) =>
    variants.flatMap(({ name, label }) => {
      const summary = results[name]?.summary;
      if (!summary) return [];
      const mean = (metric: string, digits: number) => Number(summary.metrics[metric].mean.toFixed(digits));
      const frechet = summary.frechetVae === null ? "" : summary.frechetVae.toPrecision(3);
      const values = [mean("psnr", 2), mean("ssim", 4), mean("msssim", 4), mean("ssimulacra2", 1), frechet];
      return [[task, label, summary.pictures, ...values]];
    }),
  );
  out.print(
    formatTable([
      ["task", "against full precision", "pictures", "PSNR dB", "SSIM", "MS-SSIM", "SSIMULACRA2", "VAE Frechet"],
      ...rows,
    ]),
  );
  for (const note of notes) out.print(`- ${note}`);
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

function parseShares(text: string): number[] {
  return text.split(",").map((part) => {
    const share = parseNumber(part) / 100;
    if (!(share >= 0 && share <= 1)) throw new InvalidArgumentError("Expected percentages from 0 to 100.");
    return share;
  });
}

function parseWhole(text: string): number {
  const value = parseNumber(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError("Expected a whole number, at least 0.");
  return value;
}

function parseRange(text: string): [number, number] {
  const [low, high, ...rest] = text.split(",").map(parseNumber);
  if (rest.length > 0 || !(low < high)) throw new InvalidArgumentError("Expected LOW,HIGH, for example 0,1.");
  return [low, high];
}
