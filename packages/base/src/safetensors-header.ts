/**
 * The header of a safetensors file (https://github.com/huggingface/safetensors): 8 bytes little-endian length, then
 * JSON that maps tensor names to dtype, shape and offsets in the data section, which follows without gaps.
 */
import * as z from "zod/mini";
import { InputError } from "./errors.ts";
import { checkValue } from "./schema.ts";

const bitsPerElement = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  F64: 64,
  I64: 64,
  U64: 64,
  C64: 64,
} as const;

/** Element types a file may declare. */
export type SafetensorsDtype = keyof typeof bitsPerElement;

/** A tensor as declared in a header; `begin` and `end` are byte offsets from the start of the data section. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** A checked header. */
export interface SafetensorsHeader {
  /** In the order of the data section. */
  readonly entries: readonly SafetensorsEntry[];
  readonly metadata: Readonly<Record<string, string>>;
  /** Offset of the data section in the file. */
  readonly dataStart: number;
}

/** The reference implementation's limit for headers, in bytes. */
const maximumHeaderLength = 100_000_000;
const metadataKey = "__metadata__";

const offsetSchema = z.int().check(z.nonnegative());
const entrySchema = z.object({
  dtype: z.custom<SafetensorsDtype>((name) => typeof name === "string" && Object.hasOwn(bitsPerElement, name), {
    error: (issue) => `unknown dtype ${JSON.stringify(issue.input)}`,
  }),
  shape: z.array(offsetSchema),
  data_offsets: z.tuple([offsetSchema, offsetSchema]),
});
/** The reference reader takes null for no metadata. */
const metadataSchema = z.nullable(z.record(z.string(), z.string()));

/** Bytes a tensor takes, or undefined where that is not a whole number, or not a safe one. */
export function byteLengthOf(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  const bits = shape.reduce((product, size) => product * size, bitsPerElement[dtype]);
  return Number.isSafeInteger(bits) && bits % 8 === 0 ? bits / 8 : undefined;
}

/**
 * Length of the JSON header, from a file's first 8 bytes.
 * @throws InputError where the file is too short for its header.
 */
export function readSafetensorsHeaderLength(start: Uint8Array, fileSize: number, file: string): number {
  if (start.length < 8 || fileSize < 8)
    throw new InputError({
      what: "not a safetensors file, or cut short",
      file,
      expected: "at least 8 bytes",
      got: `${Math.min(start.length, fileSize)} bytes`,
      fix: "Download or export the file again.",
    });
  const length = new DataView(start.buffer, start.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(maximumHeaderLength) || length > BigInt(fileSize - 8))
    throw new InputError({
      what: "not a safetensors file, or cut short: the header is longer than the file or the format allows",
      file,
      expected: `at most ${Math.min(maximumHeaderLength, fileSize - 8)} bytes`,
      got: `${length} bytes`,
      fix: "Check that it is a .safetensors file (no .ckpt, .pt or web page), or download it again.",
    });
  return Number(length);
}

/**
 * Checks the JSON header of a file of `fileSize` bytes.
 * @param header - The header's bytes, without the 8 bytes of its length.
 * @throws InputError for anything the format does not allow: no JSON, duplicate keys, unknown dtypes, offsets that
 * overlap, leave gaps or exceed the file, lengths that do not match dtype and shape.
 */
export function parseSafetensorsHeader(header: Uint8Array, fileSize: number, file: string): SafetensorsHeader {
  const json = parseHeaderJson(header, file);
  const dataStart = 8 + header.length;
  const dataLength = fileSize - dataStart;
  let metadata: Record<string, string> = {};
  const entries: SafetensorsEntry[] = [];
  for (const [name, value] of Object.entries(json)) {
    if (name === metadataKey) {
      const { data, issue } = checkValue(metadataSchema, value);
      if (issue) throw new InputError({ what: "metadata must map strings to strings", file, where: metadataKey });
      metadata = data ?? {};
    } else entries.push(parseEntry(name, value, file));
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let position = 0;
  for (const { name: where, begin, end } of entries) {
    const got = `[${begin}, ${end}]`;
    if (end > dataLength)
      throw new InputError({
        what: "the tensor lies outside the file, which may be cut short",
        file,
        where,
        expected: `offsets within ${dataLength} bytes of data`,
        got,
        fix: "Download or export the file again.",
      });
    if (begin !== position)
      throw new InputError({
        what: begin < position ? "the tensor overlaps another" : "there is a gap before the tensor",
        file,
        where,
        expected: `offsets from ${position}`,
        got,
      });
    position = end;
  }
  if (position !== dataLength)
    throw new InputError({
      what: "the file has bytes that belong to no tensor",
      file,
      expected: `${position} bytes of data`,
      got: `${dataLength}`,
    });
  return { entries, metadata, dataStart };
}

function parseHeaderJson(header: Uint8Array, file: string): Record<string, unknown> {
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
    json = JSON.parse(text);
  } catch {
    throw new InputError({ what: "the header is not JSON", file, fix: "Check that it is a safetensors file." });
  }
  if (header[0] !== 0x7b) throw new InputError({ what: "the header is not a JSON object", file });
  const duplicate = findDuplicateKey(text);
  if (duplicate !== undefined) throw new InputError({ what: "the header names a key twice", file, where: duplicate });
  return json as Record<string, unknown>;
}

/** First key that an object of this (valid) JSON text holds twice; `JSON.parse` would keep the last without a word. */
function findDuplicateKey(json: string): string | undefined {
  const keysInScope: (Set<string> | undefined)[] = [];
  for (let i = 0; i < json.length; i++) {
    const character = json[i];
    if (character === "{") keysInScope.push(new Set());
    else if (character === "[") keysInScope.push(undefined);
    else if (character === "}" || character === "]") keysInScope.pop();
    else if (character === '"') {
      const start = i;
      for (i++; json[i] !== '"'; i++) if (json[i] === "\\") i++;
      let next = i + 1;
      while (next < json.length && " \t\r\n".includes(json[next])) next++;
      if (json[next] !== ":") continue;
      const key = JSON.parse(json.slice(start, i + 1)) as string;
      const keys = keysInScope.at(-1)!;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return undefined;
}

function parseEntry(name: string, value: unknown, file: string): SafetensorsEntry {
  const { data, issue } = checkValue(entrySchema, value);
  if (issue) {
    const what = `bad header entry: ${issue.path.join(".") || "value"}: ${issue.message}`;
    throw new InputError({ what, file, where: name, expected: "dtype, shape and data_offsets" });
  }
  const {
    dtype,
    shape,
    data_offsets: [begin, end],
  } = data;
  const expected = byteLengthOf(dtype, shape);
  if (expected === undefined || end - begin !== expected)
    throw new InputError({
      what: `the tensor's length does not match ${dtype} [${shape.join(", ")}]`,
      file,
      where: name,
      expected: expected === undefined ? "a whole number of bytes" : `${expected} bytes`,
      got: `${end - begin} bytes`,
    });
  return { name, dtype, shape, begin, end };
}

/**
 * The file's bytes before the data section: length and JSON, padded with spaces so that the data starts at a multiple
 * of 8. Tensors are laid out in the order given; same input, same bytes.
 * @throws InputError for duplicate or reserved names and shapes without a whole number of bytes.
 */
export function serializeSafetensorsHeader(
  tensors: readonly Pick<SafetensorsEntry, "name" | "dtype" | "shape">[],
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array<ArrayBuffer> {
  // Members are written one by one: an object would reorder names that look like integers.
  const members: string[] = [];
  if (Object.keys(metadata).length > 0) members.push(`"${metadataKey}":${JSON.stringify(metadata)}`);
  const names = new Set([metadataKey]);
  let position = 0;
  for (const { name, dtype, shape } of tensors) {
    if (names.has(name)) throw new InputError({ what: "duplicate or reserved tensor name", where: name });
    names.add(name);
    const length = byteLengthOf(dtype, shape);
    if (length === undefined)
      throw new InputError({ what: `${dtype} [${shape.join(", ")}] is not a whole number of bytes`, where: name });
    members.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [position, position + length] })}`,
    );
    position += length;
  }
  const json = new TextEncoder().encode(`{${members.join(",")}}`);
  const paddedLength = Math.ceil(json.length / 8) * 8;
  const bytes = new Uint8Array(8 + paddedLength).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(paddedLength), true);
  bytes.set(json, 8);
  return bytes;
}
