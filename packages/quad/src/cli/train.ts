import { Command, InvalidArgumentError, Option } from "commander";
import { type TrainAdapterOptions, trainAdapter, trainDefaults } from "../train/train-adapter.ts";
import { trainWeights, trainWeightsDefaults } from "../train/train-weights.ts";
import type { TrainingProgress } from "../train/training-loop.ts";
import { parseCount, parseNumber, parseSeed } from "./arguments.ts";
import { interruptSignal } from "./interrupt.ts";
import type { Terminal } from "./terminal.ts";

type Options = Omit<TrainAdapterOptions, "signal" | "onStage" | "onProgress" | "onWarning" | "dtype"> & {
  dtype?: "f32" | "f16" | "bf16";
  full?: boolean;
  fromScratch?: boolean;
};

export function trainCommand(terminal: () => Terminal): Command {
  const count = (flag: string, text: string, value?: number) =>
    new Option(flag, text).argParser(parseCount).default(value);
  const number = (flag: string, text: string, value?: number) =>
    new Option(flag, text).argParser(parsePositive).default(value);
  const lora = (option: Option) => option.conflicts("full");
  return new Command("train")
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
    .option("--full", "train the weights instead of a LoRA")
    .addOption(new Option("--from-scratch", "with --full: start from random weights").implies({ full: true }))
    .addOption(lora(new Option("--format <format>", "file layout of the LoRA").choices(["kohya", "peft"])))
    .addOption(lora(new Option("--dtype <type>", "type of the LoRA's weights").choices(["f16", "bf16", "f32"])))
    .addOption(lora(count("--rank <rank>", `rank of the factors (default: ${trainDefaults.rank})`)))
    .addOption(lora(number("--alpha <alpha>", "the branch counts alpha / rank (default: the rank)")))
    .addOption(lora(new Option("--initial <adapter>", "LoRA to start from; a bare name looks in MODEL/adapters")))
    .addOption(
      lora(
        new Option("--profile <file>", "train on the base as this profile quantizes it; <model> is the exposed folder"),
      ),
    )
    .option(
      "--layers <which>",
      "attention, feed-forward, convolutions (joined by commas), all, or a regular expression\n" +
        `(default: ${trainDefaults.layers}; with --full: ${trainWeightsDefaults.layers})`,
    )
    .addOption(count("-n, --steps <count>", "training steps", trainDefaults.steps))
    .addOption(count("--batch <count>", "pictures per step", trainDefaults.batch))
    .addOption(
      number(
        "--learning-rate <rate>",
        `highest learning rate (default: ${trainDefaults.learningRate}; with --full: ${trainWeightsDefaults.learningRate})`,
      ),
    )
    .addOption(count("--warmup <steps>", "steps until the highest rate", trainDefaults.warmup))
    .option("--weight-decay <share>", "decoupled weight decay", parseShare, trainDefaults.weightDecay)
    .addOption(number("--clip-norm <norm>", "largest norm of the gradients", trainDefaults.clipNorm))
    .option("--average-decay <share>", "decay of the moving average; 0: none", parseShare, trainDefaults.averageDecay)
    .option("--caption-dropout <share>", "share trained without caption", parseShare, trainDefaults.captionDropout)
    .option("--flip", "train on mirrored pictures too")
    .option("--size <pixels>", "HEIGHTxWIDTH; default: the model's", parseSize)
    .option("--validation <folder>", "pictures to measure on; the best parameters are kept")
    .addOption(count("--validate-every <steps>", "steps between measurements", trainDefaults.validateEvery))
    .option("-s, --seed <number>", "for start values, order and noise", parseSeed, trainDefaults.seed)
    .addOption(count("--threads <count>", "processor threads; the last digits depend on it", trainDefaults.threads))
    .addOption(
      count("--segments <count>", "recompute activations: less memory, more time (default: where memory is short)"),
    )
    .addOption(count("--checkpoint-every <steps>", "steps between checkpoints", trainDefaults.checkpointEvery))
    .addHelpText(
      "after",
      "\nExample:\n  quad train models/pocket --pairs stickers --rank 8 --steps 1500 --out sticker.safetensors\n  quad expose models/pocket --adapter sticker=sticker.safetensors --out exposed",
    )
    .action(async (model: string, { dtype, full, fromScratch, ...options }: Options) => {
      const out = terminal();
      const events = {
        signal: interruptSignal(),
        onStage: (stage: string, done: number, total: number) => out.progress(stage, done, total),
        onProgress: ({ step, steps }: TrainingProgress) => out.progress("training", step, steps),
        onWarning: (message: string) => out.warn(message),
      };
      const result = full
        ? await trainWeights(model, { ...options, ...events, fromScratch: fromScratch === true })
        : await trainAdapter(model, {
            ...options,
            ...events,
            ...(dtype ? { dtype: dtype.toUpperCase() as "F16" } : {}),
          });
      out.endProgress();
      const { curve: _curve, ...summary } = result;
      out.result(summary);
      if (result.resumedFrom > 0) out.print(`Went on from step ${result.resumedFrom}.`);
      if (result.segments > 1) out.print(`Activations were recomputed in ${result.segments} segments to save memory.`);
      const best = result.best
        ? `, ${result.best.value.toFixed(4)} on the validation pictures at step ${result.best.step}`
        : "";
      out.print(
        `${result.layers} layers, ${result.parameters} parameters, ${result.examples} examples, ${result.steps} steps: loss ${result.loss.toFixed(4)}${best}`,
      );
      out.print(`Wrote ${result.out}`);
    });
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
