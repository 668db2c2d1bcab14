import type { Guided, Prompts } from "./family.ts";

/**
 * Ho and Salimans, "Classifier-free diffusion guidance" (2022): away from the negative prompt, towards the prompt. At and
 * below 1 there is none, as everywhere, and no row for the negative prompt.
 *
 * @param behind - channels behind the latents, the same in both rows
 */
export async function classifierFree(prompts: Prompts, guidance: number, behind?: Float32Array): Promise<Guided> {
  const prompt = { conditions: prompts.prompt, behind };
  if (guidance <= 1) return { rows: [prompt], strengths: [] };
  return { rows: [{ conditions: await prompts.negative(), behind }, prompt], strengths: [guidance] };
}

/** The predictions of all rows as one; see {@link Guided}. */
export function combineRows(
  predictions: readonly Float32Array[],
  strengths: readonly number[],
  out: Float32Array,
): void {
  for (let i = 0; i < out.length; i++) {
    let sum = predictions[0][i];
    for (let k = 0; k < strengths.length; k++) sum += strengths[k] * (predictions[k + 1][i] - predictions[k][i]);
    out[i] = sum;
  }
}

/**
 * Brings guided predictions back to the spread of the last row's, by a share: Lin et al., "Common Diffusion Noise Schedules
 * and Sample Steps are Flawed" (2023), section 3.4. Guidance over-exposes models of zero terminal signal-to-noise without it.
 *
 * @param share - 0: nothing changes; 1: the same standard deviation
 */
export function rescale(guided: Float32Array, conditional: Float32Array, share: number): void {
  const factor = share * (standardDeviation(conditional) / standardDeviation(guided)) + 1 - share;
  for (let i = 0; i < guided.length; i++) guided[i] *= factor;
}

function standardDeviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}
