import { InputError } from "@quad-lora/base";
import type { Dimension, Value } from "@quad-lora/onnx";
import { z } from "zod";

/** What a denoiser takes an input for. */
export type DenoiserRole =
  /** Noisy latents, and conditioning behind them: a picture, or a sequence of packed patches. */
  | "sample"
  | "timestep"
  /** Hidden states of the text encoders. */
  | "text"
  /** Which tokens count. */
  | "mask"
  /** A vector or number per row, the same at every step: pooled text, sizes, guidance. */
  | "condition"
  /** Where patches and tokens lie, the same for all rows. */
  | "positions"
  /** What another network adds to the denoiser's own activations. */
  | "residual"
  | "other";

/**
 * What an axis counts. `times`: time steps, one for all rows or one per row. `fixed`: features, of which every graph has its own
 * number. `own`: a length of this input alone.
 */
type Axis = "batch" | "height" | "width" | "sequence" | "tokens" | "times" | "fixed" | "own";

interface InputKind {
  role: DenoiserRole;
  name: RegExp;
  /** Layouts that exporters give it, told apart by their number of axes. */
  layouts: readonly (readonly Axis[])[];
}

/** Name of the time step's input in every family. */
export const timestepInput = "timestep";

/** Name of the text's hidden states in every family. */
export const textInput = "encoder_hidden_states";

/**
 * Inputs of the denoisers of diffusers, as Optimum names them in its exports: UNets of Stable Diffusion 1, 2, XL, LCM and those with a
 * ControlNet; transformers of Stable Diffusion 3, Flux, PixArt and Sana.
 */
const inputKinds: readonly InputKind[] = [
  {
    role: "sample",
    name: /^(sample|hidden_states)$/,
    layouts: [
      ["batch", "fixed", "height", "width"],
      ["batch", "sequence", "fixed"],
    ],
  },
  { role: "timestep", name: /^timestep$/, layouts: [[], ["times"]] },
  { role: "text", name: /^encoder_hidden_states$/, layouts: [["batch", "tokens", "fixed"]] },
  { role: "mask", name: /(^|_)attention_mask$/, layouts: [["batch", "tokens"]] },
  {
    role: "condition",
    name: /^(pooled_projections|text_embeds|time_ids|timestep_cond|guidance)$/,
    layouts: [["batch", "fixed"], ["batch"]],
  },
  {
    role: "positions",
    name: /^img_ids$/,
    layouts: [
      ["sequence", "fixed"],
      ["batch", "sequence", "fixed"],
    ],
  },
  {
    role: "positions",
    name: /^txt_ids$/,
    layouts: [
      ["tokens", "fixed"],
      ["batch", "tokens", "fixed"],
    ],
  },
  {
    role: "residual",
    name: /^(down_block_additional_residuals_\d+|mid_block_additional_residual)$/,
    layouts: [["batch", "fixed", "own", "own"]],
  },
];

/** Sizes that a denoiser is fixed to when it is quantized or trained. Lengths that its graph has no axis for are left out. */
export const denoiserShapeSchema = z.strictObject({
  /** Rows per run: 2 for classifier-free guidance. */
  batch: z.int().positive(),
  /** Latent height and width, where the latents are a picture. */
  height: z.int().positive().optional(),
  width: z.int().positive().optional(),
  /** Patches, where the latents are a sequence of them. */
  sequence: z.int().positive().optional(),
  /** Tokens of the text encoder. */
  tokens: z.int().positive().optional(),
  /** Whether every row has a time step of its own, where the graph takes one or several. */
  rowTimesteps: z.boolean().optional(),
  /** Dimensions of inputs that have lengths of their own, by name. */
  others: z.record(z.string(), z.array(z.int())).optional(),
});
/** Sizes that a denoiser is fixed to, see {@link denoiserShapeSchema}. */
export type DenoiserShape = z.infer<typeof denoiserShapeSchema>;

/** What the input of this name is for. */
export function roleOf(name: string): DenoiserRole {
  return kindOf(name)?.role ?? "other";
}

/**
 * The name of the input with the noisy latents.
 * @param names - of a denoiser's inputs
 * @throws InputError if none of them is
 */
export function sampleInput(names: Iterable<string>): string {
  const all = [...names];
  const found = all.find((name) => roleOf(name) === "sample");
  if (found !== undefined) return found;
  throw new InputError({
    what: "the denoiser has no input for the latents",
    expected: "sample or hidden_states",
    got: all.join(", ") || "no inputs",
    fix: "Export the model with Optimum, which names its inputs so.",
  });
}

/** What the axes of an input count. Inputs that no family has are taken to have rows first, where they have two axes or more. */
export function axesOf(name: string, axisCount: number): readonly Axis[] {
  const layout = kindOf(name)?.layouts.find(({ length }) => length === axisCount);
  return layout ?? Array.from({ length: axisCount }, (_, axis) => (axis === 0 && axisCount > 1 ? "batch" : "own"));
}

/**
 * Dimensions of the denoiser's own inputs at one shape, by name. Numbers that the graph declares stand.
 * @param inputs - without those for adapters
 * @throws InputError where the graph leaves a length open that the shape does not say
 */
export function denoiserDims(inputs: readonly Value[], shape: DenoiserShape, file?: string): Record<string, number[]> {
  const declared = inputs.map((input) => ({ name: input.name, dims: declaredDims(input, file) }));
  const symbols = symbolLengths(declared, shape);
  const lengthOf = (name: string, dim: Dimension, axis: number, kind: Axis): number | undefined => {
    if (typeof dim === "number") return dim;
    const known = lengthAlong(kind, name, axis, shape);
    return known ?? (dim === null ? undefined : symbols.get(dim));
  };
  return Object.fromEntries(
    declared.map(({ name, dims }) => {
      const axes = axesOf(name, dims.length);
      const lengths = dims.map((dim, axis) => {
        const length = lengthOf(name, dim, axis, axes[axis]);
        if (length !== undefined) return length;
        throw new InputError({
          what: `cannot tell the length of axis ${axis}`,
          file,
          where: `input "${name}"`,
          fix: "Export the model with this axis fixed.",
        });
      });
      return [name, lengths];
    }),
  );
}

/** A shape in words, without its rows: for messages. */
export function describeShape({ height, width, sequence, tokens }: DenoiserShape): string {
  const latents = sequence === undefined ? `latents ${height} x ${width}` : `${sequence} patches`;
  return tokens === undefined ? latents : `${latents}, ${tokens} tokens`;
}

/** Whether two shapes differ in nothing but their rows. */
export function isSameSize(a: DenoiserShape, b: DenoiserShape): boolean {
  const keyOf = ({ height, width, sequence, tokens, others = {} }: DenoiserShape) => {
    const own = Object.entries(others).map(([name, dims]) => [name, dims.slice(1)]);
    return JSON.stringify([height, width, sequence, tokens, own]);
  };
  return keyOf(a) === keyOf(b);
}

function kindOf(name: string): InputKind | undefined {
  return inputKinds.find((kind) => kind.name.test(name));
}

function lengthAlong(kind: Axis, name: string, axis: number, shape: DenoiserShape): number | undefined {
  switch (kind) {
    case "times":
      return shape.rowTimesteps ? shape.batch : 1;
    case "own":
      return shape.others?.[name]?.[axis];
    case "fixed":
      return undefined;
    default:
      return shape[kind];
  }
}

/** Lengths of the graph's symbolic dimensions, as far as inputs of known layout have them: others may use the same symbols. */
function symbolLengths(
  declared: readonly { name: string; dims: readonly Dimension[] }[],
  shape: DenoiserShape,
): Map<string, number> {
  const lengths = new Map<string, number>();
  for (const { name, dims } of declared) {
    const axes = axesOf(name, dims.length);
    for (const [axis, dim] of dims.entries()) {
      const length = typeof dim === "string" ? lengthAlong(axes[axis], name, axis, shape) : undefined;
      if (length !== undefined && axes[axis] !== "times") lengths.set(dim as string, length);
    }
  }
  return lengths;
}

function declaredDims(input: Value, file?: string): readonly Dimension[] {
  if (input.type?.kind === "tensor" && input.type.shape) return input.type.shape;
  throw new InputError({
    what: "the graph declares no shape for this input",
    file,
    where: `input "${input.name}"`,
    fix: "Export the model again, with shapes.",
  });
}
