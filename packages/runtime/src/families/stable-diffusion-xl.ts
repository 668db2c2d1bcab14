import {
  type Conditions,
  type Drawing,
  type Family,
  type PromptEncoding,
  penultimateAlone,
  penultimateStates,
  sideBySide,
} from "./family.ts";

/**
 * Stable Diffusion XL, Turbo and Lightning: Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image
 * Synthesis" (2023). Two encoders' penultimate states side by side, the second one's pooled state, and six numbers for the
 * size. No negative prompt at all means zeros, an empty one is encoded.
 */
export const stableDiffusionXl: Family = {
  name: "Stable Diffusion XL",
  pipelineClasses: [
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "OnnxStableDiffusionXLPipeline",
  ],
  denoiser: "unet",
  sample: "sample",
  output: "out_sample",
  encoders: [
    { component: "text_encoder", tokenizer: "tokenizer", outputs: penultimateAlone },
    { component: "text_encoder_2", tokenizer: "tokenizer_2", outputs: penultimateStates },
  ],
  isFlow: false,
  defaults: { guidance: 5, steps: 30, size: 128 },
  patch: 1,
  timestep: { scale: 1, perRow: false },
  conditions,
  withoutNegative: ({ time_ids, ...prompt }) => ({
    ...Object.fromEntries(
      Object.entries(prompt).map(([name, { dims, values }]) => [
        name,
        { dims, values: new Float32Array(values.length) },
      ]),
    ),
    time_ids,
  }),
};

function conditions(prompt: ReadonlyMap<string, PromptEncoding>, { width, height }: Drawing): Conditions {
  const [first, second] = [prompt.get("text_encoder")!, prompt.get("text_encoder_2")!];
  return {
    encoder_hidden_states: sideBySide(first.states, second.states),
    text_embeds: second.outputs.get("text_embeds")!,
    // Original size, corner of the crop, target size: height before width, as in the paper's section 2.2.
    time_ids: { dims: [6], values: [height, width, 0, 0, height, width] },
  };
}
