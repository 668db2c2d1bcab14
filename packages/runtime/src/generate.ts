import { InputError } from "@quad-lora/base";
import { denoise } from "./denoise.ts";
import type { Conditions, Drawing, Guided } from "./families/family.ts";
import { classifierFree } from "./families/guidance.ts";
import type { GenerateContext, GeneratedImage, GenerateOptions } from "./generate-options.ts";
import { SeededRandom } from "./noise.ts";
import { checkRequest, type Request } from "./request.ts";
import { createScheduler, type Scheduler } from "./schedulers/index.ts";

/** Makes one picture; see {@link GenerateOptions}. The work behind `Pipeline.generate`. */
export async function generateImage(context: GenerateContext, options: GenerateOptions): Promise<GeneratedImage> {
  const { autoencoder, family } = context;
  options.signal?.throwIfAborted();
  const request = checkRequest(context, options);
  const { width, height, denoiseShare, steps, guidance } = request;
  const started = performance.now();

  const drawing = drawingOf(context, request);
  const guided = await guide(context, request, drawing);
  const scheduler = schedulerFor(context, options.scheduler, steps, drawing);
  // As diffusers' `get_timesteps`: whole steps only, and at least one.
  const skipped = steps - Math.max(1, Math.min(steps, Math.floor(steps * denoiseShare)));
  const firstIndex = scheduler.order * skipped;
  const { latentChannels, latentHeight, latentWidth } = drawing;
  const size = latentChannels * latentHeight * latentWidth;
  const seed = options.seed ?? (options.latents ? 0 : Math.floor(Math.random() * 2 ** 31));
  const random = new SeededRandom(seed);
  const noise = options.latents ?? Float32Array.from({ length: size }, () => random.normal());
  const drawn = new Float32Array(size);
  let draws = 0;
  const latents = new Float32Array(size);
  if (denoiseShare < 1) scheduler.addNoise(await drawing.imageLatents(), noise, firstIndex, latents);
  else for (let i = 0; i < size; i++) latents[i] = noise[i] * scheduler.initNoiseSigma;

  const encoded = performance.now();
  await denoise({
    ort: context.ort,
    family,
    denoiser: context.denoiser,
    companion: companionOf(context, drawing),
    scheduler,
    latents,
    size: { channels: latentChannels, height: latentHeight, width: latentWidth },
    layout: family.layout?.(drawing),
    guided,
    guidanceRescale: request.guidanceRescale,
    firstIndex,
    stepNoise: () => {
      if (options.stepNoise) return options.stepNoise(draws++);
      for (let i = 0; i < size; i++) drawn[i] = random.normal();
      return drawn;
    },
    signal: options.signal,
    onStep: options.onStep,
    onModelRun: options.onModelRun,
  });
  const denoised = performance.now();
  options.signal?.throwIfAborted();
  const { data } = await autoencoder.decode(latents, width, height);
  const milliseconds = {
    encode: encoded - started,
    denoise: denoised - encoded,
    decode: performance.now() - denoised,
  };
  return { width, height, data, latents, seed, steps, guidance, milliseconds };
}

function drawingOf({ denoiser, autoencoder, index }: GenerateContext, request: Request): Drawing {
  let latents: Promise<Float32Array> | undefined;
  return {
    ...request,
    denoiser: denoiser.graph,
    autoencoder,
    index,
    latentChannels: autoencoder.latentChannels,
    imageLatents: () => (latents ??= autoencoder.encode(request.image!)),
  };
}

/** Encodes the prompts that are needed, and asks the family for the rows. */
async function guide(context: GenerateContext, request: Request, drawing: Drawing): Promise<Guided> {
  const { family, encodePrompt, index } = context;
  const encode = async (prompt: string | Conditions) =>
    typeof prompt === "string" ? encodePrompt(prompt) : withoutBatch(prompt, drawing);
  const complete = (prompt: Conditions): Conditions => ({ ...prompt, ...family.constants?.(drawing, prompt) });
  const prompt = await encode(request.prompt);
  const negative = async () => {
    const given = request.negativePrompt;
    const absent = given === undefined ? family.absentNegative?.(prompt, index) : undefined;
    return complete(absent ?? (await encode(given ?? "")));
  };
  const prompts = { prompt: complete(prompt), negative };
  if (family.guide) return family.guide(prompts, drawing);
  return classifierFree(prompts, family.embedsGuidance ? drawing.trueGuidance : drawing.guidance);
}

/** Embeddings may have a batch axis of one row, as other tools write them. */
function withoutBatch(embeddings: Conditions, { denoiser }: Drawing): Conditions {
  return Object.fromEntries(
    Object.entries(embeddings).map(([name, { dims, values }]) => {
      const hasBatch = denoiser.input(name).shape.length === dims.length && dims[0] === 1;
      return [name, { dims: hasBatch ? dims.slice(1) : dims, values }];
    }),
  );
}

function companionOf({ family, companion }: GenerateContext, drawing: Drawing) {
  const definition = family.companion;
  return (
    definition && companion && { ...companion, definition, conditions: definition.conditions(drawing, companion.graph) }
  );
}

function schedulerFor(
  { family, schedulerConfig, schedulerFile }: GenerateContext,
  override: GenerateOptions["scheduler"],
  steps: number,
  { latentWidth, latentHeight }: Drawing,
): Scheduler {
  const changes = typeof override === "string" ? { _class_name: override } : override;
  const config = { ...schedulerConfig, ...changes };
  const scheduler = createScheduler(config, steps, {
    file: schedulerFile,
    imageTokens: (latentWidth / family.patch) * (latentHeight / family.patch),
    sigmas: family.sigmas?.(steps),
  });
  if ((scheduler.predictionType === "flow_prediction") === family.isFlow) return scheduler;
  throw new InputError({
    what: `this scheduler is not one for ${family.name}`,
    file: schedulerFile,
    where: "_class_name",
    expected: family.isFlow ? "a scheduler of flow matching" : "a scheduler of noise or velocity prediction",
    got: String(config._class_name),
  });
}
