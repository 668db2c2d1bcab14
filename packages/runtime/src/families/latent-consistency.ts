import type { Conditions, Drawing, Family } from "./family.ts";
import { stableDiffusion } from "./stable-diffusion.ts";

/**
 * Latent consistency models: Luo et al., "Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step
 * Inference" (2023). Guidance is an input of the network, so that no row without the prompt is needed.
 */
export const latentConsistency: Family = {
  ...stableDiffusion,
  name: "latent consistency model",
  pipelineClasses: ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"],
  defaults: { guidance: 8.5, steps: 4, size: 64 },
  embedsGuidance: true,
  conditions: (prompt, drawing) => ({ ...stableDiffusion.conditions(prompt, drawing), ...guidanceInput(drawing) }),
};

/** Sines, then cosines, of `1000 (guidance - 1)` at frequencies from 1 to 1/10000 (Vaswani et al., 2017). */
function guidanceInput({ denoiser, guidance }: Drawing): Conditions {
  const width = denoiser.inputs.get("timestep_cond")?.shape[1];
  if (typeof width !== "number") return {};
  const half = width >> 1;
  const values = new Float32Array(width);
  for (let index = 0; index < half; index++) {
    const angle = 1000 * (guidance - 1) * Math.exp((-Math.log(10000) * index) / (half - 1));
    values[index] = Math.sin(angle);
    values[half + index] = Math.cos(angle);
  }
  return { timestep_cond: { dims: [width], values } };
}
