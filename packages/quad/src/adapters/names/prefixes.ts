import type { AdapterComponent } from "../types.ts";

/** The networks that denoise. A model has one of them. */
export const denoisers: readonly AdapterComponent[] = ["unet", "transformer"];
export const textEncoders: readonly AdapterComponent[] = ["text_encoder", "text_encoder_2", "text_encoder_3"];
export const allComponents: readonly AdapterComponent[] = [...denoisers, ...textEncoders, "controlnet"];

/** T5 is the third text encoder of Stable Diffusion 3 and the second of Flux: `te3` in sd-scripts for both. */
const t5: readonly AdapterComponent[] = ["text_encoder_3", "text_encoder_2"];

/** Prefixes of names and what they belong to, in the order they are tried; a longer one stands before its own beginning. */
export const prefixes: readonly (readonly [prefix: string, components: readonly AdapterComponent[]])[] = [
  ["model.diffusion_model.", denoisers],
  ["diffusion_model.", denoisers],
  ["lora_unet_", denoisers],
  ["lora_transformer_", ["transformer"]],
  ["lora_controlnet_", ["controlnet"]],
  ["lora_te1_", ["text_encoder"]],
  ["lora_te2_", ["text_encoder_2"]],
  ["lora_te3_", t5],
  ["lora_te_", ["text_encoder"]],
  ["lycoris_unet_", denoisers],
  ["lycoris_", allComponents],
  ["unet.", ["unet"]],
  ["controlnet.", ["controlnet"]],
  ["text_encoders.clip_l.transformer.", ["text_encoder"]],
  ["text_encoders.clip_g.transformer.", ["text_encoder_2"]],
  ["text_encoders.t5xxl.transformer.", t5],
  ["text_encoder.", ["text_encoder"]],
  ["text_encoder_2.", ["text_encoder_2"]],
  ["text_encoder_3.", ["text_encoder_3"]],
  ["transformer.", ["transformer"]],
];

/** Prefixes of components that no supported pipeline has. */
export const foreignPrefixes = ["text_encoder_4.", "vae.", "lora_prior_"];
