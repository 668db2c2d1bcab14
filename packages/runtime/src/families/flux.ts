import {
  type Conditions,
  type Drawing,
  type Family,
  type LatentLayout,
  lastStates,
  type PromptEncoding,
} from "./family.ts";

/**
 * Flux.1 (dev and schnell): latents in packs of 2 x 2, positions as inputs, the pooled state of a CLIP and the states of
 * a T5. Guidance is distilled into dev's network; true guidance by a negative prompt is an option beside it.
 */
export const flux: Family = {
  name: "Flux",
  pipelineClasses: ["FluxPipeline", "FluxImg2ImgPipeline"],
  denoiser: "transformer",
  requires: ["img_ids", "txt_ids"],
  sample: "hidden_states",
  output: "out_hidden_states",
  encoders: [
    { component: "text_encoder", tokenizer: "tokenizer", outputs: () => ["pooler_output"] },
    {
      component: "text_encoder_2",
      tokenizer: "tokenizer_2",
      // Schnell was trained with shorter prompts; its scheduler does not shift.
      tokens: ({ use_dynamic_shifting: shifts }) => (shifts === true ? 512 : 256),
      outputs: lastStates,
    },
  ],
  isFlow: true,
  defaults: { guidance: 3.5, steps: 28, size: 128 },
  patch: 2,
  timestep: { scale: 1 / 1000, perRow: true },
  embedsGuidance: true,
  encodePrompt,
  constants,
  layout: packed,
  sigmas: (steps) => Array.from({ length: steps }, (_, step) => 1 - step / steps),
};

function encodePrompt(texts: ReadonlyMap<string, PromptEncoding>): Conditions {
  return {
    encoder_hidden_states: texts.get("text_encoder_2")!.states,
    pooled_projections: texts.get("text_encoder")!.states,
  };
}

/** Positions (0, row, column) of the packs; those of text are zero. Schnell has no input for guidance. */
function constants({ denoiser, guidance, latentWidth, latentHeight }: Drawing, prompt: Conditions): Conditions {
  const [rows, columns] = [latentHeight / 2, latentWidth / 2];
  const positions = Array.from({ length: rows * columns }, (_, token) => [
    0,
    Math.floor(token / columns),
    token % columns,
  ]);
  const [tokens] = prompt.encoder_hidden_states.dims;
  return {
    img_ids: { dims: [rows * columns, 3], values: positions.flat() },
    txt_ids: { dims: [tokens, 3], values: new Float32Array(tokens * 3) },
    ...(denoiser.inputs.has("guidance") ? { guidance: { dims: [], values: [guidance] } } : {}),
  };
}

/** `[channels, height, width]` as `[height / 2 * width / 2, channels * 4]`: a pack has channel, then row, then column. */
function packed({ latentChannels: channels, latentHeight: height, latentWidth: width }: Drawing): LatentLayout {
  const features = channels * 4;
  const place = (channel: number, y: number, x: number) =>
    ((y >> 1) * (width >> 1) + (x >> 1)) * features + channel * 4 + (y & 1) * 2 + (x & 1);
  const places = new Uint32Array(channels * height * width);
  for (let channel = 0, i = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) places[i++] = place(channel, y, x);
  }
  return {
    dims: [(height / 2) * (width / 2), features],
    pack: (latents, out) => {
      for (let i = 0; i < places.length; i++) out[places[i]] = latents[i];
    },
    unpack: (row, out) => {
      for (let i = 0; i < places.length; i++) out[i] = row[places[i]];
    },
  };
}
