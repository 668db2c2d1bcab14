/**
 * Encodings files of AIMET (https://github.com/quic/aimet), which Qualcomm's converters take as quantization overrides:
 * versions 0.6.1, 1.0.0 and 2.0.0 of its "Encoding Format Specification". Reads the older 0.4 and 0.5 as well.
 */
import { InputError } from "@quad-lora/base";
import { z } from "zod";
import { type Encoding, gridLimits } from "../quantization/encoding.ts";
import {
  blockOrder,
  channelListSchema,
  type EntryContent,
  EntryProblem,
  flatEntrySchema,
  fromChannelList,
  fromFlatEntry,
  fromOnnxEntry,
  onnxEntrySchema,
  type TensorPlace,
  typeName,
} from "./aimet-entries.ts";

/** Versions of AIMET's encodings files that can be written. */
export type AimetVersion = "0.6.1" | "1.0.0" | "2.0.0";

/** Encodings by tensor name. */
export interface ModelEncodings {
  activations: Map<string, Encoding>;
  /** Weights, biases and other constants. */
  parameters: Map<string, Encoding>;
}

/** What AIMET's files leave out. */
export interface AimetTensorFacts {
  /** Shape of a parameter, needed for per-block encodings whose channels are not the first axis. */
  shapeOf?: (name: string) => readonly number[] | undefined;
}

export interface ReadAimetOptions extends AimetTensorFacts {
  /** Whether a name is a parameter's, which 2.0.0 does not tell; all are activations by default. */
  isParameter?: (name: string) => boolean;
  /** Axis of output channels, which 0.6.1 and 1.0.0 do not tell: 0 by default (Conv); a MatMul's weight has them in 1. */
  channelAxisOf?: (name: string) => number;
}

export interface AimetFile extends ModelEncodings {
  /** Version whose layout the file has. */
  version: AimetVersion;
  /** Entries without an encoding that this toolkit knows, and why. */
  skipped: { name: string; reason: string }[];
}

/**
 * The text of an encodings file. Signed grids lose nothing in any version; that a grid is affine but signed is kept by
 * 2.0.0 only: elsewhere it becomes the unsigned grid of the same values.
 * @throws InputError for per-block encodings in 0.6.1, and where their order needs a shape that is not known
 */
export function writeAimet(encodings: ModelEncodings, version: AimetVersion, facts: AimetTensorFacts = {}): string {
  const entriesOf = <T>(map: ReadonlyMap<string, Encoding>, convert: (encoding: Encoding, name: string) => T): T[] =>
    [...map].map(([name, encoding]) => locate(`AIMET ${version}`, name, () => convert(encoding, name)));
  const { activations, parameters } = encodings;
  if (version === "2.0.0") {
    const toEntry = (encoding: Encoding, name: string) => ({ name, ...toOnnxEntry(encoding, facts.shapeOf?.(name)) });
    return format({ version, encodings: [...entriesOf(activations, toEntry), ...entriesOf(parameters, toEntry)] });
  }
  if (version === "1.0.0") {
    const toEntry = (encoding: Encoding, name: string) => ({ name, ...toFlatEntry(encoding, facts.shapeOf?.(name)) });
    return format({
      version,
      activation_encodings: entriesOf(activations, toEntry),
      param_encodings: entriesOf(parameters, toEntry),
    });
  }
  const toRecord = (map: ReadonlyMap<string, Encoding>) =>
    Object.fromEntries(entriesOf(map, (encoding, name) => [name, toChannelList(encoding)] as const));
  return format({ version, activation_encodings: toRecord(activations), param_encodings: toRecord(parameters) });
}

const format = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

/** Minus the zero points on the unsigned grid. */
function unsignedOffsets({ bits, signed, zeroPoint }: Encoding): number[] {
  const shift = signed ? 2 ** (bits - 1) : 0;
  return Array.from(zeroPoint, (zero) => -(zero + shift));
}

function isCentred({ signed, zeroPoint }: Encoding): boolean {
  return signed && zeroPoint.every((zero) => zero === 0);
}

function toChannelList(encoding: Encoding): object[] {
  if (encoding.blockSize !== undefined) throw new EntryProblem("0.6.1 has no per-block encodings; use 1.0.0 or 2.0.0");
  const { low, high } = gridLimits({ ...encoding, symmetric: false });
  return unsignedOffsets(encoding).map((offset, i) => ({
    bitwidth: encoding.bits,
    dtype: "int",
    is_symmetric: isCentred(encoding) ? "True" : "False",
    max: (high - encoding.zeroPoint[i]) * encoding.scale[i],
    min: (low - encoding.zeroPoint[i]) * encoding.scale[i],
    offset,
    scale: encoding.scale[i],
  }));
}

function toFlatEntry(encoding: Encoding, shape: readonly number[] | undefined): object {
  const { bits, axis, blockSize } = encoding;
  const flat = { dtype: "INT", bw: bits, is_sym: isCentred(encoding) };
  const [scale, offset] = [Array.from(encoding.scale), unsignedOffsets(encoding)];
  if (axis === undefined || blockSize === undefined)
    return { enc_type: axis === undefined ? "PER_TENSOR" : "PER_CHANNEL", ...flat, scale, offset };
  const channelAxis = 1 - axis;
  if (axis < 0 || axis > 1) throw new EntryProblem(`1.0.0 has blocks along axis 0 or 1 of a matrix only, not ${axis}`);
  const order = blockOrder(scale.length, blockSize, { channelAxis, ...(shape ? { shape } : {}) });
  const listed = (values: readonly number[]) => {
    const result = new Array<number>(values.length);
    order.forEach((place, i) => {
      result[place] = values[i];
    });
    return result;
  };
  return { enc_type: "PER_BLOCK", block_size: blockSize, ...flat, scale: listed(scale), offset: listed(offset) };
}

function toOnnxEntry(encoding: Encoding, shape: readonly number[] | undefined): object {
  const { axis, blockSize } = encoding;
  const arrange = (values: ArrayLike<number>): unknown => {
    if (axis === undefined) return values[0];
    if (blockSize === undefined) return Array.from(values);
    if (!shape)
      throw new EntryProblem("per-block scales of version 2.0.0 are nested lists: the tensor's shape is needed");
    const sizes = shape.map((size, i) => (i === axis ? Math.ceil(size / blockSize) : size));
    if (sizes.reduce((product, size) => product * size, 1) !== values.length)
      throw new EntryProblem(`${values.length} per-block scales for a tensor [${shape}] in blocks of ${blockSize}`);
    return sizes
      .slice(1)
      .reduceRight<unknown[]>(
        (list, size) => Array.from({ length: list.length / size }, (_, i) => list.slice(i * size, (i + 1) * size)),
        Array.from(values),
      );
  };
  return {
    output_dtype: typeName(encoding),
    y_scale: arrange(encoding.scale),
    ...(encoding.zeroPoint.some((zero) => zero !== 0) ? { y_zero_point: arrange(encoding.zeroPoint) } : {}),
    ...(axis !== undefined ? { axis } : {}),
    ...(blockSize !== undefined ? { block_size: blockSize } : {}),
  };
}

const anything = z.unknown();
const fileSchemas = {
  "0.6.1": z.looseObject({
    activation_encodings: z.record(z.string(), anything).default({}),
    param_encodings: z.record(z.string(), anything).default({}),
  }),
  "1.0.0": z.looseObject({
    activation_encodings: z.array(anything).default([]),
    param_encodings: z.array(anything).default([]),
  }),
  "2.0.0": z.looseObject({ encodings: z.array(anything) }),
};

/**
 * Reads an encodings file of any version, told apart by its layout; entries whose version says otherwise are refused.
 * Tensors that stay floating point or have other bit widths than 4, 8 and 16 are listed in `skipped`. Low power
 * blockwise encodings (LPBQ) become per-block ones with the products of their scales.
 * @param file - its name, for messages
 * @throws InputError naming the entry
 */
export function readAimet(text: string, file: string, options: ReadAimetOptions = {}): AimetFile {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new InputError({ what: `is not valid JSON: ${(error as Error).message}`, file });
  }
  const version = detectVersion(content, file);
  const result: AimetFile = { version, activations: new Map(), parameters: new Map(), skipped: [] };
  const placeOf = (name: string): TensorPlace => {
    const shape = options.shapeOf?.(name);
    return { channelAxis: options.channelAxisOf?.(name) ?? 0, ...(shape ? { shape } : {}) };
  };
  const add = (into: Map<string, Encoding>, name: string, content: EntryContent): void => {
    if (into.has(name)) throw new InputError({ what: "has two entries of the same name", file, where: name });
    if ("encoding" in content) into.set(name, content.encoding);
    else result.skipped.push({ name, reason: content.skipped });
  };
  if (version === "2.0.0") {
    const { encodings } = parse(fileSchemas[version], content, file, "");
    encodings.forEach((value, index) => {
      const entry = parse(onnxEntrySchema, value, file, nameOf(value) ?? `encodings[${index}]`);
      const into = options.isParameter?.(entry.name) ? result.parameters : result.activations;
      add(
        into,
        entry.name,
        locate(file, entry.name, () => fromOnnxEntry(entry)),
      );
    });
    return result;
  }
  if (version === "1.0.0") {
    const lists = parse(fileSchemas[version], content, file, "");
    const read = (key: "activation_encodings" | "param_encodings", into: Map<string, Encoding>) => {
      lists[key].forEach((value, index) => {
        const entry = parse(flatEntrySchema, value, file, nameOf(value) ?? `${key}[${index}]`);
        add(
          into,
          entry.name,
          locate(file, entry.name, () => fromFlatEntry(entry, placeOf(entry.name))),
        );
      });
    };
    read("activation_encodings", result.activations);
    read("param_encodings", result.parameters);
    return result;
  }
  const records = parse(fileSchemas[version], content, file, "");
  const read = (record: Readonly<Record<string, unknown>>, into: Map<string, Encoding>) => {
    for (const [name, value] of Object.entries(record)) {
      const entries = parse(channelListSchema, value, file, name);
      add(
        into,
        name,
        locate(file, name, () => fromChannelList(entries, placeOf(name))),
      );
    }
  };
  read(records.activation_encodings, result.activations);
  read(records.param_encodings, result.parameters);
  return result;
}

const headSchema = z.looseObject({ version: z.string().optional() });

/** The version whose layout the content has. */
function detectVersion(content: unknown, file: string): AimetVersion {
  const head = parse(headSchema, content, file, "");
  const lists = [head.activation_encodings, head.param_encodings].filter((value) => value !== undefined);
  const byLayout: AimetVersion | undefined = Array.isArray(head.encodings)
    ? "2.0.0"
    : lists.length === 0
      ? undefined
      : lists.every(Array.isArray)
        ? "1.0.0"
        : "0.6.1";
  const major = head.version?.split(".")[0];
  const isStated = major === undefined || major === byLayout?.split(".")[0];
  if (byLayout && isStated) return byLayout;
  throw new InputError({
    what: "not an AIMET encodings file of a known version",
    file,
    expected: "version 0.6.1, 1.0.0 or 2.0.0 in its layout",
    got: `version ${head.version ?? "not given"}, keys ${Object.keys(head).slice(0, 6).join(", ") || "none"}`,
    fix: "Export the encodings again, as 1.0.0 for example.",
  });
}

function nameOf(value: unknown): string | undefined {
  const name = (value as { name?: unknown } | null)?.name;
  return typeof name === "string" ? name : undefined;
}

function parse<S extends z.ZodType>(schema: S, value: unknown, file: string, where: string): z.infer<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const path = [where, issue.path.join(".")].filter(Boolean).join(": ");
  throw new InputError({ what: issue.message, file, ...(path ? { where: path } : {}) });
}

function locate<T>(file: string, name: string, convert: () => T): T {
  try {
    return convert();
  } catch (error) {
    if (error instanceof EntryProblem) throw new InputError({ what: error.message, file, where: name });
    throw error;
  }
}
