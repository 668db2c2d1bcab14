import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import type { Value } from "@quad-lora/onnx";
import { alphaSigma, createScheduler, SeededRandom } from "@quad-lora/runtime";
import { z } from "zod";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { readRecord } from "../files/json.ts";
import { sampleInput, textInput, timestepInput } from "../model/denoiser.ts";
import { floatTensor } from "../model/denoiser-calls.ts";
import { readScheduler } from "../model/model-folder.ts";
import { openFolder } from "../model/open-folder.ts";
import { type TimestepPort, timestepTensor } from "../model/timesteps.ts";
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
  const source = await ExposedModel.open(exposed);
  const { component } = source;
  const { examples } = await readTrainingFolder(dataset);
  const pipeline = await openFolder(exposed);
  try {
    await pipeline.use(task);
    const { inputs } = source.load().graph;
    const channels = await sampleChannels(exposed, component);
    const chosen = examples.slice(0, settings.pictures);
    const encoded = await encodeDataset(model, chosen, {
      ...{ channels, size: pipeline.defaultSize, flip: false },
      stage: `encoding ${task}`,
      signal,
      onProgress,
    });
    const { guidance, steps } = { ...pipeline.family.defaults, ...pipeline.task(task) };
    const { scheduler, schedulerFile } = await readScheduler(exposed);
    const { timesteps } = createScheduler(scheduler, steps, { file: schedulerFile });
    const levels = alphaSigma(scheduler, { file: schedulerFile });
    const sampleName = sampleInput(inputs.map(({ name }) => name));
    const [samplePort, timestepPort, textPort] = [sampleName, timestepInput, textInput].map((name) =>
      portNamed(inputs, name),
    );
    const random = new SeededRandom(settings.seed);
    const { height, width, tokens, textWidth, texts } = encoded;
    const rows = guidance <= 1 ? 1 : 2;
    const calls: ModelCall[] = [];
    for (const [caseIndex, { latents, conditioning, caption }] of encoded.examples.entries()) {
      for (const [step, time] of timesteps.entries()) {
        signal?.throwIfAborted();
        const { alpha, sigma } = levels(time);
        const row = new Float32Array(latents.length + conditioning.length);
        for (let i = 0; i < latents.length; i++) row[i] = alpha * latents[i] + sigma * random.normal();
        row.set(conditioning, latents.length);
        const captions = rows === 1 ? [caption] : ["", caption];
        const noisy = joined(captions.map(() => row));
        const states = joined(captions.map((text) => texts.get(text)!));
        const call = {
          [sampleName]: floatTensor(samplePort.type, [rows, channels, height, width], noisy),
          [timestepInput]: timestepTensor(timestepPort, [time]),
          [textInput]: floatTensor(textPort.type, [rows, tokens, textWidth], states),
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

function joined(rows: readonly Float32Array[]): Float32Array {
  const data = new Float32Array(rows.reduce((sum, { length }) => sum + length, 0));
  rows.reduce((offset, row) => {
    data.set(row, offset);
    return offset + row.length;
  }, 0);
  return data;
}

/** How a graph takes an input; lengths that it leaves open are one. */
function portNamed(inputs: readonly Value[], name: string): TimestepPort {
  const input = inputs.find((value) => value.name === name);
  if (input?.type?.kind === "tensor") {
    const dims = (input.type.shape ?? []).map((dim) => (typeof dim === "number" ? dim : 1));
    return { type: input.type.dataType, dims };
  }
  throw new InputError({
    what: "the denoiser lacks an input that training pictures are given to",
    expected: name,
    got: inputs.map((value) => value.name).join(", "),
    fix: "Leave the folder out: the teacher draws its own pictures.",
  });
}
