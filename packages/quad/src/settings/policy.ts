import { z } from "zod";

const rangeMethodSchema = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("min-max") }),
  z.strictObject({ kind: z.literal("percentile"), p: z.number().gt(50).max(100) }),
  z.strictObject({
    kind: z.literal("mse"),
    /** Factor on the error of clipped values; 1: none. */
    clipWeight: z.number().min(1).optional(),
  }),
]);

function isRegularExpression(text: string): boolean {
  try {
    new RegExp(text);
    return true;
  } catch {
    return false;
  }
}

/** A regular expression, as configurations write it. */
export const patternSchema = z.string().refine(isRegularExpression, "is not a regular expression");

/**
 * What gets quantized how: chosen by people, kept apart from what calibration saw (observations) and from what was
 * found (profile).
 */
export const policySchema = z.strictObject({
  /** Bits of the base's weights, symmetric, per output channel. */
  weightBits: z.union([z.literal(4), z.literal(8)]).default(8),
  weightMethod: z.enum(["min-max", "mse"]).default("mse"),
  /** Bits of adapter factors, symmetric, one scale per slot and factor. */
  adapterBits: z.union([z.literal(8), z.literal(16)]).default(8),
  /** Range of wide (16-bit) activations. */
  wideRange: rangeMethodSchema.default({ kind: "min-max" }),
  /**
   * How far wide ranges reach beyond what calibration saw. Two of 16 bits pay for values that only other prompts or other
   * adapters bring; clipping them would cost far more.
   */
  wideHeadroom: z.number().min(1).max(64).default(4),
  /**
   * Range of narrow (8-bit) activations. Clipping weighs more than rounding, because it hits the same values at every time
   * step and its errors add up: MSE alone clips too much, min-max rounds too coarsely.
   */
  narrowRange: rangeMethodSchema.default({ kind: "mse", clipWeight: 4 }),
  /** Weigh groups of time steps by their own spread, so that late steps with small values keep their resolution. */
  balanceSteps: z.boolean().default(true),
  /** Share of layers whose inputs get 8 bits, 0 to 1. Other activations keep 16, or stay float where the target leaves them so. */
  narrowShare: z.number().min(0).max(1).default(0),
  /** Instead of a share: as many narrow layers as keep the denoiser's signal to noise above this, dB. */
  narrowFloor: z.number().optional(),
  /** Also round everything between the layers to 8 bits. What the paper's fully 8-bit model does, and why it collapses. */
  narrowEverything: z.boolean().default(false),
  /** Layers, and with `narrowEverything` also values, that stay wide: regular expressions over their names. */
  keepWide: z.array(patternSchema).default([]),
  /**
   * How far shared factor scales reach beyond the adapters they are taken from: room for adapters that come later, and
   * for blends. 1 = none.
   */
  headroom: z.number().min(1).default(4),
  /** Use the factors' gauge freedom to fit each adapter to the shared scales. */
  align: z.boolean().default(true),
  /**
   * Whose ranges all share. "auto" scores every way and takes the one whose worst task loses least; "paper" takes the anchor
   * unless all adapters are about equally sensitive; the others are taken as said.
   */
  strategy: z.enum(["auto", "paper", "anchor", "unified", "mixed"]).default("auto"),
  /** Relative spread of the scores, (max - min) / max, below which "paper" merges all distributions. */
  unifiedThreshold: z.number().min(0).max(1).default(0.2),
});
/** What gets quantized how, with defaults filled in. */
export type Policy = z.infer<typeof policySchema>;
/** What gets quantized how, as people write it. */
export type PolicyInput = z.input<typeof policySchema>;
