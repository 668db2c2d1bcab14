import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InputError } from "./errors.ts";
import {
  fromFloat32,
  parseSafetensors,
  type SafetensorsDtype,
  type SafetensorsInput,
  serializeSafetensors,
  toFloat32,
  toTypedArray,
} from "./safetensors.ts";

/** A file from a literal header, unchecked. */
function fileOf(header: string | object, dataLength: number, declaredLength?: number): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + dataLength);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(declaredLength ?? json.length), true);
  bytes.set(json, 8);
  return bytes;
}

const entry = (dtype: string, shape: unknown, begin: number, end: number) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});
const pocket = (name: string) => fileURLToPath(new URL(`../../../models/pocket/adapters/${name}`, import.meta.url));

describe("parseSafetensors refuses", () => {
  const cases: [string, Uint8Array, RegExp][] = [
    ["an empty file", new Uint8Array(0), /at least 8 bytes/],
    ["a file cut in the length", new Uint8Array(5), /got 5 bytes/],
    ["a header longer than the file", fileOf("{}", 0, 1000), /longer than the file.*got 1000 bytes/],
    ["a header length beyond all bounds", new Uint8Array(64).fill(255), /longer than the file/],
    ["no JSON", fileOf("{not json", 0), /not JSON/],
    ["bytes that are not UTF-8", fileOf("{}", 0).map((byte, i) => (i === 8 ? 0xff : byte)), /not JSON/],
    ["a JSON array", fileOf("[]", 0), /not a JSON object/],
    ["a header that starts with a space", fileOf(" {}", 0), /not a JSON object/],
    ["an unknown dtype", fileOf({ a: entry("F17", [1], 0, 4) }, 4), /a: bad header entry: dtype: unknown dtype "F17"/],
    ["a dtype from Object's prototype", fileOf({ a: entry("toString", [1], 0, 4) }, 4), /unknown dtype/],
    ["a negative size", fileOf({ a: entry("F32", [-1], 0, 4) }, 4), /a: bad header entry: shape/],
    ["a fractional size", fileOf({ a: entry("F32", [1.5], 0, 6) }, 6), /a: bad header entry/],
    ["an entry without offsets", fileOf({ a: { dtype: "F32", shape: [1] } }, 4), /data_offsets/],
    ["a length that does not match", fileOf({ a: entry("F32", [2], 0, 4) }, 4), /F32 \[2\].*expected 8 bytes, got 4/],
    ["reversed offsets", fileOf({ a: entry("F32", [1], 4, 0) }, 4), /got -4 bytes/],
    ["an overflowing shape", fileOf({ a: entry("U8", [2 ** 40, 2 ** 40], 0, 4) }, 4), /whole number of bytes/],
    ["half a byte", fileOf({ a: entry("F4", [3], 0, 2) }, 2), /whole number of bytes/],
    ["a tensor past the end", fileOf({ a: entry("F32", [2], 0, 8) }, 4), /a: the tensor lies outside the file/],
    [
      "overlapping tensors",
      fileOf({ a: entry("F32", [2], 0, 8), b: entry("F32", [1], 4, 8) }, 8),
      /b: the tensor overlaps another/,
    ],
    ["a gap", fileOf({ a: entry("U8", [1], 0, 1), b: entry("U8", [1], 2, 3) }, 3), /b: there is a gap/],
    ["a gap at the start", fileOf({ a: entry("U8", [1], 1, 2) }, 2), /a: there is a gap/],
    ["bytes after the last tensor", fileOf({ a: entry("U8", [1], 0, 1) }, 3), /belong to no tensor/],
    [
      "duplicate keys",
      fileOf(
        `{"a":${JSON.stringify(entry("U8", [1], 0, 1))}, "\\u0061" : ${JSON.stringify(entry("U8", [1], 0, 1))}}`,
        1,
      ),
      /a: the header names a key twice/,
    ],
    ["metadata of numbers", fileOf({ __metadata__: { a: 1 } }, 0), /strings to strings/],
  ];
  test.each(cases)("%s", (_, bytes, message) => {
    let error: unknown;
    try {
      parseSafetensors(bytes, "some.safetensors");
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(InputError);
    expect((error as Error).message).toMatch(message);
    expect((error as Error).message).toMatch(/^some\.safetensors: /);
  });
});

test("metadata may be null, as for the reference reader", () => {
  const { tensors, metadata } = parseSafetensors(fileOf({ __metadata__: null, a: entry("U8", [1], 0, 1) }, 1), "f");
  expect([...tensors.keys(), ...Object.keys(metadata)]).toEqual(["a"]);
});

test("keys that look alike or equal in different tensors are no duplicates", () => {
  const bytes = fileOf(
    { __metadata__: { a: '"b":"\\', b: "{" }, a: entry("U8", [1], 0, 1), b: entry("U8", [0], 1, 1) },
    1,
  );
  const { tensors, metadata } = parseSafetensors(bytes, "f");
  expect([...tensors.keys()]).toEqual(["a", "b"]);
  expect(metadata).toEqual({ a: '"b":"\\', b: "{" });
});

const sizes: [SafetensorsDtype, number][] = [
  ["BOOL", 1],
  ["U8", 1],
  ["F8_E4M3", 1],
  ["I16", 2],
  ["F16", 2],
  ["BF16", 2],
  ["F32", 4],
  ["F64", 8],
  ["I64", 8],
];
const tensorsArbitrary = fc
  .uniqueArray(
    fc.record({
      name: fc.oneof(fc.string({ unit: "grapheme" }), fc.nat(20).map(String), fc.constant("__proto__")),
      type: fc.constantFrom(...sizes),
      shape: fc.array(fc.nat(4), { maxLength: 4 }),
      seed: fc.nat(255),
    }),
    { selector: ({ name }) => name, maxLength: 6 },
  )
  .map((specs) =>
    specs
      .filter(({ name }) => name !== "__metadata__")
      .map(({ name, type: [dtype, size], shape, seed }): SafetensorsInput => {
        const length = shape.reduce((a, b) => a * b, size);
        return { name, dtype, shape, data: Uint8Array.from({ length }, (_, i) => (i * 37 + seed) & 255) };
      }),
  );

test("random tensors round trip, in order, with an aligned data section", () => {
  const metadataArbitrary = fc.dictionary(
    fc.string({ unit: "grapheme" }).filter((key) => key !== "__proto__"),
    fc.string(),
  );
  fc.assert(
    fc.property(tensorsArbitrary, metadataArbitrary, (inputs, metadata) => {
      const bytes = serializeSafetensors(inputs, metadata);
      const file = parseSafetensors(bytes, "f");
      expect({ ...file.metadata }).toEqual({ ...metadata });
      expect(file.tensors.size).toBe(inputs.length);
      for (const { name, dtype, shape, data } of inputs) {
        const tensor = file.tensors.get(name)!;
        expect(tensor).toMatchObject({ name, dtype, shape });
        expect([...tensor.bytes]).toEqual([...(data as Uint8Array)]);
        expect(tensor.bytes.buffer).toBe(bytes.buffer);
      }
      const dataLength = inputs.reduce((total, { data }) => total + data.byteLength, 0);
      expect((bytes.length - dataLength) % 8).toBe(0);
      const inOrder = inputs.filter(({ data }) => data.byteLength > 0).map(({ name }) => name);
      expect([...file.tensors.values()].filter((t) => t.bytes.length > 0).map((t) => t.name)).toEqual(inOrder);
    }),
    { seed: 11, numRuns: 300 },
  );
});

test("random corruption and truncation give a file or an InputError, nothing else", () => {
  fc.assert(
    fc.property(
      tensorsArbitrary,
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 6 }),
      fc.option(fc.nat()),
      (inputs, edits, cut) => {
        let bytes = serializeSafetensors(inputs, { format: "pt" });
        for (const [position, value] of edits) bytes[position % bytes.length] = value;
        if (cut !== null) bytes = bytes.slice(0, cut % (bytes.length + 1));
        try {
          for (const tensor of parseSafetensors(bytes, "f").tensors.values()) toTypedArray(tensor);
        } catch (error) {
          expect(error).toBeInstanceOf(InputError);
        }
      },
    ),
    { seed: 5, numRuns: 1000 },
  );
});

test("toFloat32 converts every numeric dtype at any alignment", () => {
  const values = [0, 1, 2, 5, 100];
  const data: Partial<Record<SafetensorsDtype, ArrayBufferView>> = {
    F32: Float32Array.from(values),
    F64: Float64Array.from(values),
    F16: fromFloat32(Float32Array.from(values), "F16"),
    BF16: fromFloat32(Float32Array.from(values), "BF16"),
    I8: Int8Array.from(values),
    I64: BigInt64Array.from(values, BigInt),
    U32: Uint32Array.from(values),
  };
  for (const padding of [0, 1, 2, 4]) {
    const inputs = Object.entries(data).map(([dtype, view]) => ({
      name: dtype,
      dtype: dtype as SafetensorsDtype,
      shape: [values.length],
      data: view,
    }));
    const pad = { name: "pad", dtype: "U8" as const, shape: [padding], data: new Uint8Array(padding) };
    const bytes = serializeSafetensors([pad, ...inputs]);
    // Files that Node reads come as a Buffer, whose own methods differ from those of Uint8Array.
    for (const file of [bytes, Buffer.from(bytes)]) {
      const { tensors } = parseSafetensors(file, "f");
      for (const { name } of inputs)
        expect([...toFloat32(tensors.get(name)!)], `${name} after ${padding}`).toEqual(values);
    }
  }
  const f32 = { name: "x", dtype: "F32" as const, shape: [1], bytes: new Uint8Array(8).subarray(4) };
  expect(toFloat32(f32).buffer).toBe(f32.bytes.buffer);
  expect(() => toFloat32({ name: "x", dtype: "F8_E4M3", shape: [1], bytes: new Uint8Array(1) }, "f")).toThrow(
    InputError,
  );
});

test("writing refuses duplicate names, the metadata's name and data of another length", () => {
  const tensor = { name: "a", dtype: "F32" as const, shape: [1], data: new Float32Array(1) };
  expect(() => serializeSafetensors([tensor, tensor])).toThrow(InputError);
  expect(() => serializeSafetensors([{ ...tensor, name: "__metadata__" }])).toThrow(InputError);
  expect(() => serializeSafetensors([{ ...tensor, shape: [2] }])).toThrow(/expected 8 bytes, got 4 bytes/);
});

test("files written by the reference implementation are read", () => {
  const flat = parseSafetensors(readFileSync(pocket("flat.safetensors")), "flat.safetensors");
  expect(flat.tensors.size).toBe(360);
  expect(flat.metadata.ss_network_dim).toBe("16");
  expect([...toFloat32(flat.tensors.get("lora_unet_conv_in.alpha")!)]).toEqual([8]);
  expect(flat.tensors.get("lora_unet_conv_in.lora_down.weight")).toMatchObject({ dtype: "F16", shape: [16, 9, 3, 3] });
});
