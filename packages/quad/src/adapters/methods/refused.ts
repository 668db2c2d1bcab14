/**
 * Methods whose change is not a product of two factors, or needs tensors that a file does not hold. Half of one would be a
 * wrong picture rather than a weaker one, so they are refused by name.
 */
const refusals: readonly (readonly [RegExp, string])[] = [
  [/\.(dora_scale|lora_magnitude_vector)(\.|$)/, "DoRA"],
  [/\.boft_[Rs](\.|$)/, "BOFT"],
  [/\.(oft_blocks|oft_diag|oft_R|oft_r)(\.|$)/, "OFT"],
  [/\.(a1|a2|b1|b2)\.weight$/, "GLoRA"],
  [/\.(on_input|ia3_l)(\.|$)/, "IA3"],
  [/lora_latent_mapping(\.|$)/, "LoRA-XS"],
  [/(^|\.)vera_(A|B|lambda_[bd])(\.|$)/, "VeRA"],
  [/\.randlora_/, "RandLoRA"],
  [/\.vblora_/, "VB-LoRA"],
  [/\.hra_u(\.|$)/, "HRA"],
  [/\.(fourierft|waveft)_spectrum(\.|$)/, "FourierFT"],
  [/\.(bone_|miss_block)/, "MiSS"],
  [/\.shira_weight(\.|$)/, "SHiRA"],
  [/\.delora_/, "DeLoRA"],
  [/\.gralora_/, "GraLoRA"],
  [/\.road_(theta|alpha)(\.|$)/, "RoAd"],
  [/\.c3a_kernel(\.|$)/, "C3A"],
  [/\.lora_(ups|downs|router|experts?)\./, "mixture-of-experts LoRA"],
  [/\.lora_[AB]\.\d+$/, "DyLoRA"],
  [/^lora_controlnet$/, "Control-LoRA (a ControlNet made of a UNet's weights)"],
];

/** The name of the method that a key belongs to, where it is one that cannot be read. */
export function refusedMethod(key: string): string | undefined {
  return refusals.find(([pattern]) => pattern.test(key))?.[1];
}
