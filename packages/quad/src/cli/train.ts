import { Command, InvalidArgumentError, Option } from "commander";
import { type TrainAdapterOptions, trainAdapter, trainDefaults } from "../train/train-adapter.ts";
import { trainWeights, trainWeightsDefaults } from "../train/train-weights.ts";
import type { TrainResult } from "../train/training-run.ts";
import type { StageOptions } from "../work/progress.ts";
import { parseCount, parseNumber, parseSeed } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import type { Terminal } from "./terminal.ts";

type Options = Omit<TrainAdapterOptions, keyof StageOptions | "onWarning" | "dtype"> & {
  dtype?: "f32" | "f16" | "bf16";
  full?: boolean;
  fromScratch?: boolean;
};

export function trainCommand(terminal: () => Terminal): Command {
  const command = new Command("train")
    .summary("train a LoRA, or a model's weights, on a folder of pictures")
    .description(
      "Trains low-rank factors for a UNet on this machine and writes them as a LoRA file that other software reads too;\n" +
        "with --full the UNet's own weights, written as a model folder.\n" +
        "The folder holds NAME.target.png with NAME.input.png (image-conditioned) or NAME.mask.png (inpainting), or the target\n" +
        "alone (text-to-image); also as target/, input/, mask/. Captions: NAME.txt, captions.json or diffusers' metadata.jsonl.\n" +
        "Ctrl-C leaves a checkpoint; the same command goes on from it.",
    )
    .argument("<model>", "diffusers/Optimum ONNX folder, full precision")
    .requiredOption("--pairs <folder>", "pictures and captions to train on")
    .requiredOption("-o, --out <path>", "file (kohya) or folder (peft, --full) to write")
    .addHelpText(
      "after",
      "\nExample:\n  quad train models/pocket --pairs stickers --rank 8 --steps 1500 --out sticker.safetensors\n  quad expose models/pocket --adapter sticker=sticker.safetensors --out exposed",
    )
    .action(async (model: string, options: Options) => {
      const out = terminal();
      const result = await train(model, options, out);
      out.endProgress();
      printResult(out, result);
    });
  for (const option of [...subjectOptions(), ...optimizerOptions(), ...dataOptions(), ...runOptions()]) {
    command.addOption(option);
  }
  return command;
}

const text = (flags: string, description: string) => new Option(flags, description);
const count = (flags: string, description: string, value?: number) =>
  text(flags, description).argParser(parseCount).default(value);
const positive = (flags: string, description: string, value?: number) =>
  text(flags, description).argParser(parsePositive).default(value);
const share = (flags: string, description: string, value: number) =>
  text(flags, description).argParser(parseShare).default(value);

/** What is trained, from which start, and how it is written. */
function subjectOptions(): Option[] {
  const lora = [
    text("--format <format>", "file layout of the LoRA").choices(["kohya", "peft"]),
    text("--dtype <type>", "type of the LoRA's weights").choices(["f16", "bf16", "f32"]),
    count("--rank <rank>", `rank of the factors (default: ${trainDefaults.rank})`),
    positive("--alpha <alpha>", "the branch counts alpha / rank (default: the rank)"),
    text("--initial <adapter>", "LoRA to start from; a bare name looks in MODEL/adapters"),
    text("--profile <file>", "train on the base as this profile quantizes it; <model> is the exposed folder"),
  ];
  const layers =
    "attention, feed-forward, convolutions (joined by commas), all, or a regular expression\n" +
    `(default: ${trainDefaults.layers}; with --full: ${trainWeightsDefaults.layers})`;
  return [
    text("--full", "train the weights instead of a LoRA"),
    text("--from-scratch", "with --full: start from random weights").implies({ full: true }),
    ...lora.map((option) => option.conflicts("full")),
    text("--layers <which>", layers),
  ];
}

function optimizerOptions(): Option[] {
  const rates = `default: ${trainDefaults.learningRate}; with --full: ${trainWeightsDefaults.learningRate}`;
  return [
    count("-n, --steps <count>", "training steps", trainDefaults.steps),
    count("--batch <count>", "pictures per step", trainDefaults.batch),
    positive("--learning-rate <rate>", `highest learning rate (${rates})`),
    count("--warmup <steps>", "steps until the highest rate", trainDefaults.warmup),
    share("--weight-decay <share>", "decoupled weight decay", trainDefaults.weightDecay),
    positive("--clip-norm <norm>", "largest norm of the gradients", trainDefaults.clipNorm),
    share("--average-decay <share>", "decay of the moving average; 0: none", trainDefaults.averageDecay),
  ];
}

function dataOptions(): Option[] {
  return [
    share("--caption-dropout <share>", "share trained without caption", trainDefaults.captionDropout),
    text("--flip", "train on mirrored pictures too"),
    text("--size <pixels>", "HEIGHTxWIDTH; default: the model's").argParser(parseSize),
    text("--validation <folder>", "pictures to measure on; the best parameters are kept"),
    count("--validate-every <steps>", "steps between measurements", trainDefaults.validateEvery),
  ];
}

function runOptions(): Option[] {
  const seed = text("-s, --seed <number>", "for start values, order and noise").argParser(parseSeed);
  return [
    seed.default(trainDefaults.seed),
    count("--threads <count>", "processor threads; the last digits depend on it", trainDefaults.threads),
    count("--segments <count>", "recompute activations: less memory, more time (default: where memory is short)"),
    count("--checkpoint-every <steps>", "steps between checkpoints", trainDefaults.checkpointEvery),
  ];
}

function train(model: string, { dtype, full, fromScratch, ...given }: Options, out: Terminal): Promise<TrainResult> {
  const options = { ...given, ...stageOptions(out), onWarning: out.warn };
  if (full) return trainWeights(model, { ...options, fromScratch: fromScratch === true });
  return trainAdapter(model, { ...options, dtype: dtype?.toUpperCase() as "F16" | undefined });
}

function printResult(out: Terminal, { curve: _, ...result }: TrainResult): void {
  out.result(result);
  const { layers, parameters, examples, steps, loss, best } = result;
  if (result.resumedFrom > 0) out.print(`Went on from step ${result.resumedFrom}.`);
  if (result.segments > 1) out.print(`Activations were recomputed in ${result.segments} segments to save memory.`);
  const validated = best ? `, ${best.value.toFixed(4)} on the validation pictures at step ${best.step}` : "";
  const size = `${layers} layers, ${parameters} parameters, ${examples} examples, ${steps} steps`;
  out.print(`${size}: loss ${loss.toFixed(4)}${validated}`);
  out.print(`Wrote ${result.out}`);
}

function parsePositive(text: string): number {
  const value = parseNumber(text);
  if (!(value > 0)) throw new InvalidArgumentError("Expected a number above 0.");
  return value;
}

function parseShare(text: string): number {
  const value = parseNumber(text);
  if (!(value >= 0 && value < 1)) throw new InvalidArgumentError("Expected a number from 0 to below 1.");
  return value;
}

function parseSize(text: string): [number, number] {
  const [height, width = height] = text.split("x").map(parseCount);
  return [height, width];
}
