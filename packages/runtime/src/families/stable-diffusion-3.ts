import { type Conditions, type Family, lastStates, type PromptEncoding, penultimateAndPooled } from "./family.ts";
import { concatenate, sideBySide, widen } from "./rows.ts";

/** Tokens of T5, also of the zeros in its place. */
const t5Tokens = 256;

/**
 * Stable Diffusion 3 and 3.5: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (2024).
 * Both CLIPs' states lie side by side, filled up to T5's width, and T5's behind them; without T5, zeros.
 */
export const stableDiffusion3: Family = {
  name: "Stable Diffusion 3",
  pipelineClasses: ["StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"],
  denoiser: "transformer",
  requires: ["pooled_projections"],
  sample: "hidden_states",
  output: "out_hidden_states",
  encoders: [
    { component: "text_encoder", tokenizer: "tokenizer", outputs: penultimateAndPooled },
    { component: "text_encoder_2", tokenizer: "tokenizer_2", outputs: penultimateAndPooled },
    {
      component: "text_encoder_3",
      tokenizer: "tokenizer_3",
      tokens: () => t5Tokens,
      optional: true,
      outputs: lastStates,
    },
  ],
  isFlow: true,
  defaults: { guidance: 7, steps: 28, size: 128 },
  patch: 2,
  timestep: { scale: 1, perRow: true },
  encodePrompt,
};

function encodePrompt(texts: ReadonlyMap<string, PromptEncoding>, textWidth = 4096): Conditions {
  const first = texts.get("text_encoder")!;
  const second = texts.get("text_encoder_2")!;
  const t5 = texts.get("text_encoder_3")?.states;
  const clip = sideBySide(first.states, second.states);
  const width = t5?.dims[1] ?? textWidth;
  const behind = t5 ?? { dims: [t5Tokens, width], values: new Float32Array(t5Tokens * width) };
  return {
    encoder_hidden_states: concatenate(widen(clip, width), behind),
    pooled_projections: concatenate(first.outputs.get("text_embeds")!, second.outputs.get("text_embeds")!),
  };
}
