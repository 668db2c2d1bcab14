import { Command, InvalidArgumentError, Option } from "commander";
import { type TrainAdapterOptions, trainAdapter, trainDefaults } from "../train/train-adapter.ts";
import { parseCount, parseNumber, parseSeed } from "./arguments.ts";
import { interruptSignal } from "./interrupt.ts";
import type { Terminal } from "./terminal.ts";

type Options = Omit<TrainAdapterOptions, "signal" | "onStage" | "onProgress" | "onWarning" | "dtype"> & {
  dtype: "f32" | "f16" | "bf16";
};

export function trainCommand(terminal: () => Terminal): Command {
  const count = (flag: string, text: string, value: number) =>
    new Option(flag, text).argParser(parseCount).default(value);
  const number = (flag: string, text: string, value?: number) =>
    new Option(flag, text).argParser(parsePositive).default(value);
  return new Command("train")
    .summary("train a LoRA on a folder of pictures")
    .description(
      "Trains low-rank factors for a UNet on this machine and writes them as a LoRA file that other software reads too.\n" +
        "The folder holds NAME.target.png with NAME.input.png (image-conditioned) or NAME.mask.png (inpainting), or the target\n" +
        "alone (text-to-image); also as target/, input/, mask/. Captions: NAME.txt, captions.json or diffusers' metadata.jsonl.\n" +
        "Ctrl-C leaves a checkpoint; the same command goes on from it.",
    )
    .argument("<model>", "diffusers/Optimum ONNX folder, full precision")
    .requiredOption("--pairs <folder>", "pictures and captions to train on")
    .requiredOption("-o, --out <path>", "file (kohya) or folder (peft) to write")
    .addOption(new Option("--format <format>", "file layout").choices(["kohya", "peft"]).default(trainDefaults.format))
    .addOption(
      new Option("--dtype <type>", "type of the written weights").choices(["f16", "bf16", "f32"]).default("f16"),
    )
    .addOption(count("--rank <rank>", "rank of the factors", trainDefaults.rank))
    .addOption(number("--alpha <alpha>", "the branch counts alpha / rank; default: the rank"))
    .option(
      "--layers <which>",
      "attention, feed-forward, convolutions (joined by commas), all, or a regular expression",
      trainDefaults.layers,
    )
    .addOption(count("-n, --steps <count>", "training steps", trainDefaults.steps))
    .addOption(count("--batch <count>", "pictures per step", trainDefaults.batch))
    .addOption(number("--learning-rate <rate>", "highest learning rate", trainDefaults.learningRate))
    .addOption(count("--warmup <steps>", "steps until the highest rate", trainDefaults.warmup))
    .option("--weight-decay <share>", "decoupled weight decay", parseShare, trainDefaults.weightDecay)
    .addOption(number("--clip-norm <norm>", "largest norm of the gradients", trainDefaults.clipNorm))
    .option("--average-decay <share>", "decay of the moving average; 0: none", parseShare, trainDefaults.averageDecay)
    .option("--caption-dropout <share>", "share trained without caption", parseShare, trainDefaults.captionDropout)
    .option("--flip", "train on mirrored pictures too")
    .option("--size <pixels>", "HEIGHTxWIDTH; default: the model's", parseSize)
    .option("--validation <folder>", "pictures to measure on; the best factors are kept")
    .addOption(count("--validate-every <steps>", "steps between measurements", trainDefaults.validateEvery))
    .option("-s, --seed <number>", "for start values, order and noise", parseSeed, trainDefaults.seed)
    .addOption(count("--segments <count>", "recompute activations: less memory, more time", trainDefaults.segments))
    .addOption(count("--checkpoint-every <steps>", "steps between checkpoints", trainDefaults.checkpointEvery))
    .addHelpText(
      "after",
      "\nExample:\n  quad train models/pocket --pairs stickers --rank 8 --steps 1500 --out sticker.safetensors\n  quad expose models/pocket --adapter sticker=sticker.safetensors --out exposed",
    )
    .action(async (model: string, { dtype, ...options }: Options) => {
      const out = terminal();
      const result = await trainAdapter(model, {
        ...options,
        dtype: dtype.toUpperCase() as "F16",
        signal: interruptSignal(),
        onStage: (stage, done, total) => out.progress(stage, done, total),
        onProgress: ({ step, steps }) => out.progress("training", step, steps),
        onWarning: (message) => out.warn(message),
      });
      out.endProgress();
      const { curve: _curve, ...summary } = result;
      out.result(summary);
      if (result.resumedFrom > 0) out.print(`Went on from step ${result.resumedFrom}.`);
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
