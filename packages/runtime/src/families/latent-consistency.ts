import type { Conditions, Drawing, Family } from "./family.ts";
import { stableDiffusion } from "./stable-diffusion.ts";
import { stableDiffusionXl } from "./stable-diffusion-xl.ts";
import { channelsBehind } from "./unet.ts";

/** Width of the embedding where the graph does not say it. */
const usualWidth = 256;

/**
 * Networks that were distilled together with their guidance, which is an input: Luo et al., "Latent Consistency Models" (2023).
 * There is no row for a negative prompt, whatever the guidance.
 */
function distilled(base: Family, name: string, pipelineClasses: readonly string[]): Family {
  return {
    ...base,
    name,
    pipelineClasses: [...pipelineClasses, ...base.pipelineClasses],
    requires: [...base.requires, "timestep_cond"],
    defaults: { ...base.defaults, guidance: 8.5, steps: 4 },
    constants: (drawing, prompt) => ({ ...base.constants?.(drawing, prompt), ...embeddedGuidance(drawing) }),
    guide: async ({ prompt }, drawing) => ({
      rows: [{ conditions: prompt, behind: await channelsBehind(drawing) }],
      strengths: [],
    }),
  };
}

export const latentConsistency = distilled(stableDiffusion, "Latent Consistency Model", [
  "LatentConsistencyModelPipeline",
  "LatentConsistencyModelImg2ImgPipeline",
]);

export const latentConsistencyXl = distilled(stableDiffusionXl, "Latent Consistency Model XL", []);

function embeddedGuidance({ denoiser, guidance }: Drawing): Conditions {
  const [, declared] = denoiser.input("timestep_cond").shape;
  const width = typeof declared === "number" ? declared : usualWidth;
  return { timestep_cond: { dims: [width], values: guidanceEmbedding(guidance - 1, width) } };
}

/**
 * Sines, then cosines of `1000 strength 10000^(-i / (width / 2 - 1))`, as time steps are embedded (Vaswani et al., 2017); an
 * odd width ends in a zero. Angles reach thousands of radians, where single precision shows: they are rounded as diffusers
 * rounds them.
 *
 * @param strength - guidance less 1
 */
export function guidanceEmbedding(strength: number, width: number): Float32Array {
  const half = Math.floor(width / 2);
  const embedding = new Float32Array(width);
  const rate = Math.fround(-Math.log(10_000) / (half - 1));
  for (let i = 0; i < half; i++) {
    const angle = Math.fround(Math.fround(1000 * strength) * Math.fround(Math.exp(Math.fround(i * rate))));
    embedding[i] = Math.sin(angle);
    embedding[half + i] = Math.cos(angle);
  }
  return embedding;
}
