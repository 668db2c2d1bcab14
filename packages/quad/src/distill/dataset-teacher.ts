import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { alphaSigma, createScheduler, SeededRandom, type TensorData } from "@quad-lora/runtime";
import { z } from "zod";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { readRecord } from "../files/json.ts";
import { readScheduler } from "../model/model-folder.ts";
import { openFolder } from "../model/open-folder.ts";
import { type ModelCall, writeTrajectory } from "../records/trajectory.ts";
import type { DistillSettings } from "../settings/distill.ts";
import { readTrainingFolder } from "../train/dataset.ts";
import { encodeDataset } from "../train/encode-dataset.ts";
import type { StageOptions } from "../work/progress.ts";

/**
 * Stage: exposed folder and a folder of training pictures -> trajectory of the teacher's answers on them: every picture's
 * latents with noise of every time step that the task takes, with and without its caption. The denoising objective is then
 * about these pictures instead of the teacher's own.
 * @param model - the plain model folder, for captions in full precision
 * @param dataset - folder as `readTrainingFolder` takes it; as many pictures as `settings.pictures` are used
 */
export async function recordDataset(
  model: string,
  exposed: string,
  task: string,
  dataset: string,
  file: string,
  settings: Pick<DistillSettings, "pictures" | "seed">,
  { signal, onProgress }: StageOptions = {},
): Promise<void> {
  const { component } = await ExposedModel.open(exposed);
  const { examples } = await readTrainingFolder(dataset);
  const pipeline = await openFolder(exposed);
  try {
    await pipeline.use(task);
    const inputs = await pipeline.inputsOf(component);
    const channels = await sampleChannels(exposed, component);
    const chosen = examples.slice(0, settings.pictures);
    const encoded = await encodeDataset(model, chosen, {
      ...{ channels, size: pipeline.defaultSize, flip: false },
      stage: `encoding ${task}`,
      signal,
      onProgress,
    });
    const { guidance = 7.5, steps = 20 } = pipeline.task(task);
    const { scheduler, schedulerFile } = await readScheduler(exposed);
    const { timesteps } = createScheduler(scheduler, steps, { file: schedulerFile });
    const levels = alphaSigma(scheduler, { file: schedulerFile });
    const timestepType = inputs.find(({ name }) => name === "timestep")?.type ?? "int64";
    const random = new SeededRandom(settings.seed);
    const { height, width, tokens, textWidth, texts } = encoded;
    const rows = guidance === 1 ? 1 : 2;
    const calls: ModelCall[] = [];
    for (const [caseIndex, { latents, conditioning, caption }] of encoded.examples.entries()) {
      for (const [step, time] of timesteps.entries()) {
        signal?.throwIfAborted();
        const { alpha, sigma } = levels(time);
        const row = new Float32Array(latents.length + conditioning.length);
        for (let i = 0; i < latents.length; i++) row[i] = alpha * latents[i] + sigma * random.normal();
        row.set(conditioning, latents.length);
        const captions = rows === 1 ? [caption] : ["", caption];
        const call = {
          sample: floats(
            captions.map(() => row),
            [rows, channels, height, width],
          ),
          timestep: timestepOf(time, timestepType),
          encoder_hidden_states: floats(
            captions.map((text) => texts.get(text)!),
            [rows, tokens, textWidth],
          ),
        };
        const [output] = Object.values(await pipeline.runComponent(component, call));
        calls.push({ caseIndex, step, steps: timesteps.length, inputs: call, output });
      }
      onProgress?.(`recording ${task}`, caseIndex + 1, encoded.examples.length);
    }
    const results = encoded.examples.map(({ latents }) => ({ guidance, latents }));
    await writeTrajectory(file, { task, calls, results });
  } finally {
    await pipeline.dispose();
  }
}

const unetSchema = z.looseObject({ in_channels: z.int().positive() });

async function sampleChannels(exposed: string, component: string): Promise<number> {
  if (component !== "unet") {
    throw new InputError({
      what: "distillation on a folder of pictures is for UNets",
      file: exposed,
      fix: "Leave the folder out: the teacher draws its own pictures.",
    });
  }
  const file = join(exposed, component, "config.json");
  return (await readRecord(file, unetSchema)).in_channels;
}

function floats(rows: readonly Float32Array[], dims: number[]): TensorData {
  const data = new Float32Array(rows.reduce((sum, { length }) => sum + length, 0));
  rows.reduce((offset, row) => {
    data.set(row, offset);
    return offset + row.length;
  }, 0);
  return { type: "float32", dims, data };
}

function timestepOf(time: number, type: string): TensorData {
  if (type === "float32") return { type, dims: [], data: Float32Array.of(time) };
  return { type: "int64", dims: [], data: BigInt64Array.of(BigInt(Math.round(time))) };
}
