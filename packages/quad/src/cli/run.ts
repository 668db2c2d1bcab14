import { InputError } from "@quad-lora/base";
import { Command } from "commander";
import { checkImage, imageFormat, readImage, readMask, writeImage } from "../files/images.ts";
import { openFolder } from "../model/open-folder.ts";
import { collectStrengths, parseCount, parseNumber, parseSeed } from "./arguments.ts";
import { interruptSignal } from "./interrupt.ts";
import { readLatents, selectionOf } from "./selection.ts";
import { formatDuration, type Terminal } from "./terminal.ts";

interface Options {
  task?: string;
  use: Record<string, number>;
  image?: string;
  mask?: string;
  prompt?: string;
  negativePrompt?: string;
  seed?: number;
  latents?: string;
  steps?: number;
  guidance?: number;
  imageGuidance?: number;
  trueGuidance?: number;
  guidanceRescale?: number;
  controlImage?: string;
  controlScale?: number;
  denoise?: number;
  scheduler?: string;
  width?: number;
  height?: number;
  out: string;
}

export function runCommand(terminal: () => Terminal): Command {
  return new Command("run")
    .summary("make a picture with one task of an exposed folder or a bundle")
    .argument("<folder>", "exposed folder, bundle, or plain ONNX model folder (task base only)")
    .option("-t, --task <name>", "task: an adapter's name, or base", undefined)
    .option("-u, --use <name=strength>", "blend adapters instead of a task; repeatable", collectStrengths, {})
    .option("-p, --prompt <text>", "what to draw; default: the task's")
    .option("--negative-prompt <text>", "what to avoid")
    .option("-i, --image <file>", "picture to change, complete or be guided by")
    .option("-m, --mask <file>", "where to paint (white), for models that inpaint")
    .option("-s, --seed <number>", "noise seed; default: random, and printed", parseSeed)
    .option("--latents <file>", "safetensors with the start noise (unit variance) instead of a seed")
    .option("-n, --steps <count>", "denoising steps; default: the task's", parseCount)
    .option(
      "-g, --guidance <scale>",
      "classifier-free guidance, off at and below 1; default: the task's, else the model's",
      parseNumber,
    )
    .option("--image-guidance <scale>", "guidance by the image, for InstructPix2Pix; default: 1.5", parseNumber)
    .option("--true-guidance <scale>", "guidance by the negative prompt beside an embedded one (Flux)", parseNumber)
    .option("--guidance-rescale <share>", "for models of zero terminal signal-to-noise: 0.7", parseNumber)
    .option("--control-image <file>", "picture that a ControlNet follows")
    .option("--control-scale <scale>", "how much the ControlNet adds; default: 1", parseNumber)
    .option("--denoise <share>", "image-to-image: share of the schedule to run from the image, 0 to 1", parseNumber)
    .option("--scheduler <class>", "diffusers scheduler class, for example EulerDiscreteScheduler")
    .option("--width <pixels>", "width of the picture", parseCount)
    .option("--height <pixels>", "height of the picture", parseCount)
    .requiredOption("-o, --out <file>", "picture to write (.png, .jpg, .webp)")
    .addHelpText(
      "after",
      '\nExamples:\n  quad run exposed --task sketch --image drawing.png --prompt "cat face" --seed 7 --out cat.png\n  quad run exposed --task erase --image photo.png --mask mask.png --out clean.png\n  quad run exposed --use flat=0.7 --use sketch=0.5 --image drawing.png --prompt "cat face" --out blend.png',
    )
    .action(async (folder: string, options: Options) => {
      const out = terminal();
      if (options.seed !== undefined && options.latents) {
        throw new InputError({ what: "--seed and --latents exclude each other", fix: "Use one of them." });
      }
      imageFormat(options.out);
      const selection = selectionOf(options);
      // Opening a model takes long: a picture that cannot be read is told before.
      for (const file of [options.image, options.mask, options.controlImage]) if (file) await checkImage(file);
      const latents = options.latents ? await readLatents(options.latents) : null;
      const signal = interruptSignal();
      const pipeline = await openFolder(folder);
      try {
        await pipeline.use(selection);
        const size = {
          width: options.width ?? pipeline.defaultSize.width,
          height: options.height ?? pipeline.defaultSize.height,
        };
        const {
          task: _task,
          use: _use,
          out: path,
          image,
          mask,
          controlImage,
          latents: _latents,
          ...settings
        } = options;
        const picture = await pipeline.generate({
          ...settings,
          ...size,
          ...(image ? { image: await readImage(image, size) } : {}),
          ...(mask ? { mask: await readMask(mask, size) } : {}),
          ...(controlImage ? { controlImage: await readImage(controlImage, size) } : {}),
          ...(latents ? { latents } : {}),
          signal,
          onStep: ({ step, steps }) => out.progress("drawing", step, steps),
        });
        out.endProgress();
        await writeImage(path, picture);
        const { width, height, seed, steps, guidance, milliseconds } = picture;
        out.result({ out: path, selection, width, height, seed: latents ? null : seed, steps, guidance, milliseconds });
        const total = milliseconds.encode + milliseconds.denoise + milliseconds.decode;
        const source = latents ? "given noise" : `seed ${seed}`;
        out.print(
          `Wrote ${path} (${width}x${height}, ${source}, ${steps} steps, guidance ${guidance}) in ${formatDuration(total)}`,
        );
      } finally {
        await pipeline.dispose();
      }
    });
}
