/**
 * Single entries of AIMET's encodings files, to and from {@link Encoding}. Versions 0.6.1 and 1.0.0 count on the unsigned
 * grid: `value = (code + offset) * scale`, int8 symmetric has offset -128. Version 2.0.0 has ONNX's zero points.
 */
import { z } from "zod";
import { type BitWidth, type Encoding, gridLimits } from "../quantization/encoding.ts";

/** What an entry says of a tensor: its encoding, or why there is none. */
export type EntryContent = { encoding: Encoding } | { skipped: string };

/** A problem inside one entry; the file's reader adds file and name. */
export class EntryProblem extends Error {}

const supportedBits = [4, 8, 16];
const isSupported = (bits: number): bits is BitWidth => supportedBits.includes(bits);
const positive = z.number().positive();
const integer = z.number().refine(Number.isSafeInteger, { error: "expected an integer" });

const flag = z.union([z.boolean(), z.enum(["True", "False", "true", "false"])]);
const isTrue = (value: z.infer<typeof flag>) => value === true || value === "True" || value === "true";

/** Entries of one tensor in 0.6.1: one per channel. Earlier versions lack `dtype`. */
export const channelListSchema = z
  .array(
    z.union([
      z.looseObject({ dtype: z.literal("float"), bitwidth: integer }),
      z.looseObject({
        dtype: z.literal("int").default("int"),
        bitwidth: integer,
        scale: positive,
        offset: integer,
        is_symmetric: flag,
      }),
    ]),
  )
  .min(1);

/** An entry of 1.0.0. */
export const flatEntrySchema = z.looseObject({
  name: z.string(),
  enc_type: z.enum(["PER_TENSOR", "PER_CHANNEL", "PER_BLOCK", "LPBQ"]),
  dtype: z.enum(["INT", "FLOAT", "FP"]),
  bw: integer,
  is_sym: z.boolean().optional(),
  scale: z.array(positive).optional(),
  offset: z.array(integer).optional(),
  block_size: integer.optional(),
  compressed_bw: integer.optional(),
  per_block_int_scale: z.array(integer).optional(),
});

type Nested<T> = T | Nested<T>[];
const nested = <T>(leaf: z.ZodType<T>): z.ZodType<Nested<T>> => {
  const schema: z.ZodType<Nested<T>> = z.lazy(() => z.union([leaf, z.array(schema)]));
  return schema;
};

/** An entry of 2.0.0. */
export const onnxEntrySchema = z.looseObject({
  name: z.string(),
  output_dtype: z.string().optional(),
  y_scale: nested(positive).optional(),
  y_zero_point: nested(integer).nullish(),
  axis: integer.nullish(),
  block_size: integer.nullish(),
  per_channel_float_scale: nested(positive).optional(),
  per_block_int_scale: nested(integer).optional(),
});

/** Where scales lie, which 0.6.1 and 1.0.0 leave to the tensor's kind. */
export interface TensorPlace {
  /** Axis of the channels; output channels by AIMET's definition. */
  channelAxis: number;
  /** Shape, which the order of per-block scales depends on. */
  shape?: readonly number[];
}

/** Encoding from an offset on the unsigned grid: signed where symmetric about its middle, else unsigned. */
function fromOffsets(
  bits: BitWidth,
  isSymmetric: boolean,
  scale: readonly number[],
  offset: readonly number[],
): Encoding {
  const half = 2 ** (bits - 1);
  // Strictly symmetric grids of older versions count from -(half - 1) on.
  const isCentred = isSymmetric && (offset.every((o) => o === -half) || offset.every((o) => o === 1 - half));
  const zeroPoint = isCentred ? new Int32Array(offset.length) : Int32Array.from(offset, (o) => -o);
  const encoding = { bits, signed: isCentred, symmetric: isCentred, scale: Float32Array.from(scale), zeroPoint };
  return checked(encoding);
}

function checked(encoding: Encoding): Encoding {
  const { low, high } = gridLimits({ ...encoding, symmetric: false });
  const bad = encoding.zeroPoint.find((zero) => zero < low || zero > high);
  if (bad !== undefined)
    throw new EntryProblem(`zero point ${bad} is outside ${low} to ${high}, the codes of ${typeName(encoding)}`);
  const flat = encoding.scale.find((scale) => !(scale > 0 && Number.isFinite(scale)));
  if (flat !== undefined) throw new EntryProblem("a scale is not a positive float32");
  return encoding;
}

export function typeName({ bits, signed }: Pick<Encoding, "bits" | "signed">): string {
  return `${signed ? "" : "u"}int${bits}`;
}

const unsupportedBits = (bits: number) => ({ skipped: `${bits}-bit integers; supported are 4, 8 and 16 bits` });

export function fromChannelList(entries: z.infer<typeof channelListSchema>, place: TensorPlace): EntryContent {
  const integers = entries.filter((entry) => entry.dtype === "int");
  if (integers.length === 0) return { skipped: `stays ${entries[0].bitwidth}-bit floating point` };
  const [{ bitwidth: bits, is_symmetric: symmetric }] = integers;
  if (integers.length < entries.length || integers.some((e) => e.bitwidth !== bits || e.is_symmetric !== symmetric))
    throw new EntryProblem("channels differ in type, bit width or symmetry");
  if (!isSupported(bits)) return unsupportedBits(bits);
  const [scales, offsets] = [integers.map(({ scale }) => scale), integers.map(({ offset }) => offset)];
  const encoding = fromOffsets(bits, isTrue(symmetric), scales, offsets);
  return { encoding: entries.length > 1 ? { ...encoding, axis: place.channelAxis } : encoding };
}

export function fromFlatEntry(entry: z.infer<typeof flatEntrySchema>, place: TensorPlace): EntryContent {
  const { enc_type: kind, dtype, scale, offset, block_size: blockSize } = entry;
  if (dtype !== "INT") return { skipped: `stays ${entry.bw}-bit floating point` };
  if (!scale?.length || offset?.length !== scale.length)
    throw new EntryProblem(
      `needs as many offsets as scales, got ${scale?.length ?? 0} scales and ${offset?.length ?? 0} offsets`,
    );
  if (kind === "PER_TENSOR" && scale.length !== 1) throw new EntryProblem(`PER_TENSOR with ${scale.length} scales`);
  const bits = kind === "LPBQ" ? (entry.compressed_bw ?? 0) : entry.bw;
  if (!isSupported(bits)) return unsupportedBits(bits);
  if (kind === "PER_TENSOR") return { encoding: fromOffsets(bits, entry.is_sym ?? false, scale, offset) };
  if (kind === "PER_CHANNEL")
    return { encoding: { ...fromOffsets(bits, entry.is_sym ?? false, scale, offset), axis: place.channelAxis } };
  if (blockSize === undefined || blockSize < 1) throw new EntryProblem(`${kind} without a block_size`);
  if (kind === "PER_BLOCK") {
    const order = blockOrder(scale.length, blockSize, place);
    const ordered = (values: readonly number[]) => order.map((index) => values[index]);
    const encoding = fromOffsets(bits, entry.is_sym ?? false, ordered(scale), ordered(offset));
    return { encoding: { ...encoding, axis: 1 - place.channelAxis, blockSize } };
  }
  const factors = entry.per_block_int_scale ?? [];
  if (factors.length === 0 || factors.length % scale.length !== 0)
    throw new EntryProblem(`LPBQ with ${factors.length} integer scales for ${scale.length} channels`);
  const perChannel = factors.length / scale.length;
  const products = factors.map((factor, i) => factor * scale[Math.floor(i / perChannel)]);
  const order = blockOrder(products.length, blockSize, place);
  return {
    encoding: signedBlocks(
      bits,
      order.map((index) => products[index]),
      1 - place.channelAxis,
      blockSize,
    ),
  };
}

function signedBlocks(bits: BitWidth, scale: readonly number[], axis: number, blockSize: number): Encoding {
  const zeroPoint = new Int32Array(scale.length);
  return checked({ bits, signed: true, symmetric: true, scale: Float32Array.from(scale), zeroPoint, axis, blockSize });
}

/**
 * For each entry of the blocked layout, its place in 1.0.0's list, which runs over output channels and in each over the
 * blocks of its inputs. The same order where output channels are the first axis; transposed where they are the second.
 */
export function blockOrder(count: number, blockSize: number, { channelAxis, shape }: TensorPlace): number[] {
  if (channelAxis === 0) return Array.from({ length: count }, (_, i) => i);
  if (channelAxis !== 1 || shape?.length !== 2)
    throw new EntryProblem(
      "per-block scales of version 1.0.0 need a matrix of known shape, unless axis 0 has the channels",
    );
  const [channels, blocks] = [shape[1], Math.ceil(shape[0] / blockSize)];
  if (channels * blocks !== count)
    throw new EntryProblem(`${count} per-block scales for a matrix [${shape}] in blocks of ${blockSize}`);
  return Array.from({ length: count }, (_, i) => (i % channels) * blocks + Math.floor(i / channels));
}

export function fromOnnxEntry(entry: z.infer<typeof onnxEntrySchema>): EntryContent {
  const { output_dtype: type, y_scale: nestedScale, y_zero_point: nestedZero, block_size: blockSize } = entry;
  if (type === undefined) return { skipped: "stays floating point" };
  const match = /^(u?)int(\d+)$/.exec(type);
  if (!match) return { skipped: `quantized to ${type}` };
  const bits = Number(match[2]);
  if (!isSupported(bits)) return unsupportedBits(bits);
  const axis = entry.axis ?? undefined;
  if (entry.per_block_int_scale !== undefined && entry.per_channel_float_scale !== undefined) {
    if (axis === undefined || !blockSize) throw new EntryProblem("per-block scales without axis and block_size");
    const scale = broadcastProduct(toArray(entry.per_channel_float_scale), toArray(entry.per_block_int_scale));
    return { encoding: signedBlocks(bits, scale, axis, blockSize) };
  }
  if (nestedScale === undefined) throw new EntryProblem("has no y_scale");
  const scale = toArray(nestedScale).values;
  const zero = nestedZero === undefined || nestedZero === null ? scale.map(() => 0) : toArray(nestedZero).values;
  if (zero.length !== scale.length) throw new EntryProblem(`${scale.length} scales but ${zero.length} zero points`);
  if (axis === undefined && scale.length !== 1) throw new EntryProblem(`${scale.length} scales but no axis`);
  const signed = match[1] === "";
  return {
    encoding: checked({
      bits,
      signed,
      symmetric: signed && zero.every((value) => value === 0),
      scale: Float32Array.from(scale),
      zeroPoint: Int32Array.from(zero),
      ...(axis !== undefined ? { axis } : {}),
      ...(blockSize ? { blockSize } : {}),
    }),
  };
}

/** Values of nested lists, row-major, and the lists' lengths. */
function toArray(value: Nested<number>): { values: number[]; shape: number[] } {
  if (!Array.isArray(value)) return { values: [value], shape: [] };
  const parts = value.map(toArray);
  const shape = parts[0]?.shape ?? [];
  if (parts.some((part) => part.shape.join() !== shape.join()))
    throw new EntryProblem("nested lists of unequal lengths");
  return { values: parts.flatMap((part) => part.values), shape: [value.length, ...shape] };
}

/** Element-wise product; axes of length 1 in the first are repeated. */
function broadcastProduct(small: ReturnType<typeof toArray>, large: ReturnType<typeof toArray>): number[] {
  const fits =
    small.shape.length === large.shape.length && small.shape.every((n, i) => n === 1 || n === large.shape[i]);
  if (!fits) throw new EntryProblem(`scales [${small.shape}] do not broadcast to [${large.shape}]`);
  return large.values.map((value, index) => {
    let rest = index;
    let position = 0;
    let stride = 1;
    for (let axis = large.shape.length - 1; axis >= 0; axis--) {
      const coordinate = rest % large.shape[axis];
      rest = Math.floor(rest / large.shape[axis]);
      if (small.shape[axis] > 1) position += coordinate * stride;
      stride *= small.shape[axis];
    }
    return value * small.values[position];
  });
}
