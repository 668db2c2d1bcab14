import * as z from "zod/mini";

/** Where an adapter enters one layer of a graph. */
const slotSchema = z.strictObject({
  /** Module path of the layer, as in diffusers: `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`. */
  name: z.string(),
  kind: z.enum(["matmul", "gemm", "conv"]),
  inFeatures: z.int().check(z.positive()),
  outFeatures: z.int().check(z.positive()),
  /** Height and width of a convolution's kernel. */
  kernel: z.optional(z.tuple([z.int().check(z.positive()), z.int().check(z.positive())])),
  /** Graph input of the down projection: `[in, rank]`, for convolutions `[rank, in / groups, kernel height, kernel width]`. */
  inputA: z.string(),
  shapeA: z.array(z.union([z.int().check(z.positive()), z.literal("rank")])),
  /** Graph input of the up projection, scale folded in: `[rank, out]`, for convolutions `[out, rank, 1, 1]`. */
  inputB: z.string(),
  shapeB: z.array(z.union([z.int().check(z.positive()), z.literal("rank")])),
});

const componentSlotsSchema = z.strictObject({
  /** Graph input `[rank]`: one factor per rank, shared by all slots of the component. */
  strengthInput: z.string(),
  /**
   * Element type of the factors. Integers are codes on the symmetric grids of a bundle's profile, 0 standing for zero; the
   * graph multiplies them by its scales. Left out: a float type, as the graph says.
   */
  elementType: z.optional(z.enum(["float32", "int8", "int16"])),
  slots: z.array(slotSchema).check(z.minLength(1)),
});

/** `slots.json`: the adapter inputs of an exposed folder's graphs. */
export const slotsFileSchema = z.strictObject({
  format: z.literal("quad-slots"),
  version: z.literal(1, { error: "unknown version: this runtime reads version 1" }),
  rank: z.discriminatedUnion("kind", [
    z.strictObject({ kind: z.literal("dynamic") }),
    z.strictObject({ kind: z.literal("fixed"), rank: z.int().check(z.positive()) }),
  ]),
  /** Keyed by the component's folder: `unet`, `text_encoder`. */
  components: z.record(z.string(), componentSlotsSchema),
});
/** Content of `slots.json`. */
export type SlotsFile = z.infer<typeof slotsFileSchema>;
/** One adaptable layer: its kind, and the names and shapes of its two graph inputs. */
export type Slot = z.infer<typeof slotSchema>;

/** What the runtime needs of diffusers' `UNet2DConditionModel` configuration; the graph itself overrides it. */
export const unetConfigSchema = z.looseObject({
  in_channels: z.optional(z.int().check(z.positive())),
  /** Latent size: one number, or height and width. */
  sample_size: z.optional(
    z.union([z.int().check(z.positive()), z.tuple([z.int().check(z.positive()), z.int().check(z.positive())])]),
  ),
});

/** What the runtime needs of the configuration of diffusers' `AutoencoderKL` or `AutoencoderDC`. */
export const vaeConfigSchema = z.looseObject({
  /** Latents are `(encoding - shift_factor) * scaling_factor`; 0.18215 in Stable Diffusion 1 and 2. */
  scaling_factor: z._default(z.number().check(z.positive()), 0.18215),
  /** 0 but for the autoencoders of flow matching. */
  shift_factor: z.nullish(z.number()),
  latent_channels: z._default(z.int().check(z.positive()), 4),
  /** One entry per resolution: pixels per latent = 2^(length - 1). */
  block_out_channels: z.optional(z.array(z.number()).check(z.minLength(1))),
  /** The same in `AutoencoderDC`. */
  encoder_block_out_channels: z.optional(z.array(z.number()).check(z.minLength(1))),
});
export type VaeConfig = z.infer<typeof vaeConfigSchema>;

const tokenSchema = z.pipe(
  z.union([z.string(), z.looseObject({ content: z.string() })]),
  z.transform((token) => (typeof token === "string" ? token : token.content)),
);

/** What the runtime needs of `tokenizer_config.json`. */
export const tokenizerConfigSchema = z.looseObject({
  /** Tokens per prompt; absurdly large numbers mean "not set". */
  model_max_length: z.optional(z.pipe(z.number().check(z.minimum(1)), z.transform(Math.floor))),
  pad_token: z.nullish(tokenSchema),
  eos_token: z.nullish(tokenSchema),
  bos_token: z.nullish(tokenSchema),
});
