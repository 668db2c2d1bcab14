import { z } from "zod";
import { patternSchema } from "./policy.ts";

/** How adapters are tuned to a profile; what is left out has the defaults. */
export const distillSchema = z.strictObject({
  /**
   * Whose factors are trained: of adapters that do not define the profile (all of them where it is merged), of every adapter,
   * or of none.
   */
  adapters: z.enum(["others", "all", "none"]).default("others"),
  /** Pictures per adapter that the teacher draws, from the task's calibration cases with further seeds. */
  pictures: z.int().min(2).default(32),
  /** How many of them are kept out of training: the factors that do best on them are written. */
  validationPictures: z.int().min(1).default(4),
  steps: z.int().positive().default(300),
  /** Calls of the denoiser per step, each with the rows of its guidance. */
  batch: z.int().positive().default(4),
  /** Highest learning rate, in steps of an 8-bit grid per training step. */
  learningRate: z.number().positive().default(0.1),
  warmup: z.int().min(0).default(20),
  weightDecay: z.number().min(0).default(0),
  /** Limit of the gradients' norm. Relative errors are small, and so are their gradients. */
  clipNorm: z.number().positive().default(1e-4),
  /** Decay of the factors' moving average; 0 takes the factors as they are. */
  averageDecay: z.number().min(0).lt(1).default(0.9),
  /** Weight of the squared distance between the student's and the teacher's predictions. */
  reconstruction: z.number().min(0).default(1),
  /** Weight of the same distance after classifier-free guidance: the combination that the sampler steps by. */
  guided: z.number().min(0).default(0.5),
  /** Weight of the original denoising objective. */
  denoising: z.number().min(0).default(0.01),
  /** Weight of the relative squared distance between the student's and the teacher's activations behind blocks; 0: none. */
  features: z.number().min(0).default(0),
  /** Behind which blocks: regular expressions over module paths (`down_blocks.0`, `mid_block.resnets.1`). */
  featureBlocks: z.array(patternSchema).min(1).default(["^mid_block$", "^[a-z_]+_blocks[.][0-9]+$"]),
  validateEvery: z.int().positive().default(50),
  checkpointEvery: z.int().positive().default(50),
  seed: z.int().nonnegative().default(0),
  /** Recompute activations in this many segments: less memory, more time. */
  segments: z.int().positive().default(1),
  /** CPU threads per adapter, part of what makes results repeatable; with one each, adapters train side by side. */
  threads: z.int().positive().default(1),
});
/** Settings of a distillation with their defaults filled in. */
export type DistillSettings = z.infer<typeof distillSchema>;
/** Settings of a distillation as people write them. */
export type DistillSettingsInput = z.input<typeof distillSchema>;
