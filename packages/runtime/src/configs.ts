import { z } from "zod";

/** Where an adapter enters one layer of a graph. */
const slotSchema = z.strictObject({
  /** Module path of the layer, as in diffusers: `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`. */
  name: z.string(),
  kind: z.enum(["matmul", "gemm", "conv"]),
  inFeatures: z.int().positive(),
  outFeatures: z.int().positive(),
  /** Height and width of a convolution's kernel. */
  kernel: z.tuple([z.int().positive(), z.int().positive()]).optional(),
  /** Graph input of the down projection: `[in, rank]`, for convolutions `[rank, in / groups, kernel height, kernel width]`. */
  inputA: z.string(),
  shapeA: z.array(z.union([z.int().positive(), z.literal("rank")])),
  /** Graph input of the up projection, scale folded in: `[rank, out]`, for convolutions `[out, rank, 1, 1]`. */
  inputB: z.string(),
  shapeB: z.array(z.union([z.int().positive(), z.literal("rank")])),
});

const componentSlotsSchema = z.strictObject({
  /** Graph input `[rank]`: one factor per rank, shared by all slots of the component. */
  strengthInput: z.string(),
  /**
   * Element type of the factors. Integers are codes on the symmetric grids of a bundle's profile, 0 standing for zero; the
   * graph multiplies them by its scales. Left out: a float type, as the graph says.
   */
  elementType: z.enum(["float32", "int8", "int16"]).optional(),
  slots: z.array(slotSchema).min(1),
});

/** `slots.json`: the adapter inputs of an exposed folder's graphs. */
export const slotsFileSchema = z.strictObject({
  format: z.literal("quad-slots"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  rank: z.discriminatedUnion("kind", [
    z.strictObject({ kind: z.literal("dynamic") }),
    z.strictObject({ kind: z.literal("fixed"), rank: z.int().positive() }),
  ]),
  /** Keyed by the component's folder: `unet`, `text_encoder`. */
  components: z.record(z.string(), componentSlotsSchema),
});
/** Content of `slots.json`. */
export type SlotsFile = z.infer<typeof slotsFileSchema>;
/** One adaptable layer: its kind, and the names and shapes of its two graph inputs. */
export type Slot = z.infer<typeof slotSchema>;

/** Defaults of one task. */
export const taskSchema = z.strictObject({
  /** Adapter at strength 1, or adapters with their strengths, or none. */
  adapter: z.union([z.string(), z.record(z.string(), z.number()), z.null()]).optional(),
  /** Classifier-free guidance; 1 turns it off. */
  guidance: z.number().optional(),
  steps: z.int().positive().optional(),
  /** Used when a call gives no prompt. */
  prompt: z.string().optional(),
  negativePrompt: z.string().optional(),
  /** What a call has to bring. */
  inputs: z.array(z.enum(["prompt", "image", "mask"])).optional(),
  description: z.string().optional(),
});
/** Defaults of one task. */
export type Task = z.infer<typeof taskSchema>;

/** `tasks.json`: named defaults for generation. */
export const tasksFileSchema = z.strictObject({
  format: z.literal("quad-tasks"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  tasks: z.record(z.string(), taskSchema),
});
/** Content of `tasks.json`. */
export type TasksFile = z.infer<typeof tasksFileSchema>;

/** What the runtime needs of diffusers' `UNet2DConditionModel` configuration; the graph itself overrides it. */
export const unetConfigSchema = z.looseObject({
  in_channels: z.int().positive().optional(),
  /** Latent size: one number, or height and width. */
  sample_size: z.union([z.int().positive(), z.tuple([z.int().positive(), z.int().positive()])]).optional(),
});

/** What the runtime needs of the configuration of diffusers' `AutoencoderKL` or `AutoencoderDC`. */
export const vaeConfigSchema = z.looseObject({
  /** Latents are `(encoding - shift_factor) * scaling_factor`; 0.18215 in Stable Diffusion 1 and 2. */
  scaling_factor: z.number().positive().default(0.18215),
  /** 0 but for the autoencoders of flow matching. */
  shift_factor: z.number().nullish(),
  latent_channels: z.int().positive().default(4),
  /** One entry per resolution: pixels per latent = 2^(length - 1). */
  block_out_channels: z.array(z.number()).min(1).optional(),
  /** The same in `AutoencoderDC`. */
  encoder_block_out_channels: z.array(z.number()).min(1).optional(),
});
export type VaeConfig = z.infer<typeof vaeConfigSchema>;

const tokenSchema = z
  .union([z.string(), z.looseObject({ content: z.string() })])
  .transform((token) => (typeof token === "string" ? token : token.content));

/** What the runtime needs of `tokenizer_config.json`. */
export const tokenizerConfigSchema = z.looseObject({
  /** Tokens per prompt; absurdly large numbers mean "not set". */
  model_max_length: z.number().min(1).transform(Math.floor).optional(),
  pad_token: tokenSchema.nullish(),
  eos_token: tokenSchema.nullish(),
  bos_token: tokenSchema.nullish(),
});
